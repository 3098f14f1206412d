"""The recipes: which parts of the model learn, and by which losses. The contract is `ablate.model.recipe`."""
