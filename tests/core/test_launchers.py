"""What torchrun, srun and mpirun say to the processes that they start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.launchers import launched, without_launcher

LAUNCHERS = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "1"},
    "srun": {"SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"},
    "mpiexec": {"PMI_SIZE": "3", "PMI_RANK": "1"},
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_launcher_is_known(name):
    assert launched(LAUNCHERS[name]) == (name, 3)


@given(
    st.sampled_from(sorted(LAUNCHERS)),
    st.dictionaries(st.sampled_from(["HOME", "WANDB_MODE", "SLURM_JOB_ID"]), st.text()),
)
def test_without_it_all_else_is_left(name, others):
    assert without_launcher(others | LAUNCHERS[name]) == others
    assert launched(others) is None


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"PMI_SIZE": "many"}])
def test_without_others_beside_it_a_process_was_not_launched(environment):
    assert launched(environment) is None
