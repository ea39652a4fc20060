"""One run in several processes, on one machine or many (`jax.distributed`)."""

import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from decoupled.errors import DataError, Interrupted, TrainingError, UsageError


def check_address(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """That the three go together, and make sense; all may be None.

    Raises:
      UsageError: they do not.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise UsageError(
            f"{' and '.join(missing)} missing: give all of {', '.join(given)}, or none of them"
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(
            f"--coordinator_address is {coordinator_address!r}: give the first process's host:port, like"
            " 10.0.0.1:1234"
        )
    if num_processes < 1:
        raise UsageError(f"--num_processes is {num_processes}: choose at least 1")
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id is {process_id}: with --num_processes={num_processes} choose from 0 to"
            f" {num_processes - 1}"
        )


@contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    detect: bool = False,
    timeout: int = 300,
) -> Iterator[None]:
    """Makes this process one of several for as long as it lives; within, its devices are those of all.

    To be entered before JAX is asked for a device. With neither an address nor `detect`, it does nothing.

    Args:
      coordinator_address: host:port of the process whose id is 0.
      num_processes: that take part.
      process_id: of this one, from 0.
      detect: leave all three to JAX, which knows SLURM, GKE, Open MPI and others.
      timeout: seconds to wait for the others.

    Raises:
      UsageError: the three do not go together, or no cluster was found.
      TrainingError: the processes did not find one another, or one failed. What a failing process raises
        has to end it by `os._exit`: in the usual way it would meet the others once more, and these may be
        waiting for it in the middle of a step.
    """
    check_address(coordinator_address, num_processes, process_id)
    if detect and coordinator_address is not None:
        raise UsageError("--distributed finds the coordinator by itself: leave out --coordinator_address")
    if coordinator_address is None and not detect:
        yield
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator_address is not None and process_id == 0:
        _check_port_is_free(coordinator_address)
    _initialize(timeout, coordinator_address, num_processes, process_id)
    _hear_sigterm_again()
    try:
        yield
    except (UsageError, DataError, TrainingError, Interrupted):
        raise
    except Exception as error:
        # Runtimes tell the loss of a peer in many ways, none of them an exception of its own.
        traceback.print_exc()
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on: {first_line} (if a"
            " connection was lost, another process failed first: see its messages)"
        ) from error


def _initialize(
    timeout: int, coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """`jax.distributed.initialize`, with errors.

    When its time is up, the runtime ends the process with a stack trace of its own. So it is given more
    time, and waits in a thread.
    """
    raised: list[Exception] = []

    def wait() -> None:
        try:
            jax.distributed.initialize(
                coordinator_address, num_processes, process_id, initialization_timeout=timeout + 60
            )
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        who = "this process" if process_id is None else f"process {process_id}"
        where = f" at {coordinator_address}" if coordinator_address else ""
        count = f" {num_processes}" if num_processes else ""
        raise TrainingError(
            f"{who} has waited {time.monotonic() - started:.0f} s for all{count} processes to meet{where}:"
            " check that each was started, with the same address, and can reach it"
        )
    for error in raised:
        if coordinator_address is None and isinstance(error, ValueError):
            raise UsageError(
                "--distributed found no cluster (SLURM, GKE, Open MPI, ...) around this process: give"
                " --coordinator_address, --num_processes and --process_id"
            ) from error
        raise TrainingError(f"cannot join the other processes: {' '.join(str(error).split())}") from error


def _hear_sigterm_again() -> None:
    """The runtime takes SIGTERM for itself, for a service that nobody here asks."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _check_port_is_free(coordinator_address: str) -> None:
    port = int(coordinator_address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise TrainingError(
                f"cannot listen at port {port} of --coordinator_address ({error.strerror}): choose another,"
                " the same for all processes"
            ) from error
