"""Jobs of the SLURM workload manager: identify the current one and requeue it."""

import os
import subprocess

from vae_lightning.errors import UserError

REQUEUED = 75
"""Exit code of a training that is incomplete and will continue by itself (EX_TEMPFAIL)."""


def job() -> str | None:
    """Return the number of the batch job that this process belongs to; None outside a job.

    Jobs named ``bash`` or ``interactive`` are terminals, as they are to Lightning.
    """
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # SLURM_JOB_ID of a task may be the whole array
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def is_restarted() -> bool:
    """Return whether this job has run before and was requeued."""
    return job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> None:
    """Put this job back into the queue, to start again from the first line of its script.

    Raises:
        UserError: If SLURM refuses.
    """
    command = ["scontrol", "requeue", str(job())]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(
            f"the job was not requeued ({' '.join(command)}: {reason}): submit it with "
            "sbatch --requeue, or continue by hand"
        ) from error
