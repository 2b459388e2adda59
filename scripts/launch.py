"""Starts a training, for train.sh: one process by itself, several of this machine by torchrun.

torchrun starts the processes and ends them all where one fails. Here it learns to pass SIGUSR1 on, to say nothing of
its own where they have said what is wrong, and to end with the exit code of the process that failed first.
"""

import logging
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping

import yaml

WORKERS = ["-m", "rdcd", "train"]


def main(words: list[str]) -> int:
    """Start `rdcd train` with these words in as many processes as they ask for; return the exit code."""
    try:
        arguments = planned(words, os.environ)
    except ValueError as error:
        print(f"rdcd: {error}", file=sys.stderr)
        return 2
    print(f"rdcd: python {shlex.join([*arguments, *words])}", file=sys.stderr, flush=True)
    if arguments == WORKERS:
        os.execv(sys.executable, [sys.executable, *WORKERS, *words])
    if "--nnodes" in arguments:
        print("rdcd: waiting until all machines are there, ten minutes at most", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="rdcd-") as said:
        os.environ |= {"RDCD_LAUNCHER": str(os.getpid()), "RDCD_SAID": said}
        return torchrun([*arguments[2:], *words])


def planned(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return what Python is to run, without the words of the training.

    Args:
        words: of `rdcd train`; of `resume=RUN`, the run's configuration says what they leave out.
        environment: of this process: where WORLD_SIZE or srun's variables show that it is one of several already, it
            trains itself.

    Raises:
        ValueError: several machines are asked for, and nothing says where they meet.
    """
    if any(int(environment.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        return WORKERS
    given = dict(word.split("=", 1) for word in words if "=" in word)
    devices, nodes = (_number(given, key) for key in ("devices", "nodes"))
    if devices * nodes == 1:
        return WORKERS
    line = ["-m", "torch.distributed.run", "--nproc_per_node", str(devices), "--max_restarts", "0"]
    if nodes == 1:  # left alone, torchrun takes this machine's own name, and hangs where that leads nowhere
        return [*line, "--standalone", "--local_addr", "localhost", *WORKERS]
    line += ["--nnodes", str(nodes)]
    if "PET_RDZV_BACKEND" not in environment:
        line += ["--rdzv_backend", "c10d"]
    if "PET_RDZV_ID" not in environment:
        line += ["--rdzv_id", "rdcd"]
    if "PET_RDZV_ENDPOINT" not in environment:
        if not environment.get("MASTER_ADDR"):
            raise ValueError(f"trainer.nodes={nodes}: nothing says where the {nodes} machines meet: set MASTER_ADDR to "
                             f"the name of one of them, the same on all (and MASTER_PORT where 29500 is taken there), "
                             f"and run this line on each; under SLURM let srun start it, one task a GPU "
                             f"(docs/multi-node.md)")
        line += ["--rdzv_endpoint", f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT') or 29500}"]
    return [*line, *WORKERS]


def _number(given: Mapping[str, str], key: str) -> int:
    """Return trainer.KEY of the words, or of the run that they resume; 1 for what the training will refuse."""
    number = given.get(f"trainer.{key}")
    if number is None and given.get("resume") not in (None, "", "null", "auto"):
        from rdcd.errors import UserError
        from rdcd.evaluation.runs import find_run

        try:
            config = yaml.safe_load((find_run(given["resume"]) / "config.yaml").read_text(encoding="utf-8"))
            number = config["trainer"][key]
        except (OSError, UserError, TypeError, KeyError, yaml.YAMLError):
            pass
    return int(number) if str(number).isdecimal() and int(number) else 1


def torchrun(arguments: list[str]) -> int:
    """Run torchrun in this process; return the exit code of what it ran."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException, api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    def end(number: int, frame: object) -> None:
        """End the processes with the same signal; it may come again, as from `timeout`, and must not cut them short."""
        for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(other, signal.SIG_IGN)
        raise SignalException(f"got signal {number}", signal.Signals(number))

    signal.signal(signal.SIGUSR1, end)
    api._terminate_process_handler = end  # what torchrun sets for SIGTERM, SIGINT, SIGHUP and SIGQUIT
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "50")  # seconds for a step and a checkpoint, then SIGKILL
    logging.disable(logging.ERROR)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        # a process that another's end took along tells less
        rank, code = min(((rank, failure.exitcode) for rank, failure in error.failures.items()),
                         key=lambda end: end[1] in (1, -signal.SIGTERM, 128 + signal.SIGTERM))
        if code < 0:
            print(f"rdcd: rank {rank} was ended by {signal.Signals(-code).name}"
                  + ", as a machine does that is out of memory" * (code == -signal.SIGKILL), file=sys.stderr)
        return abs(code) + 128 * (code < 0)
    except SignalException as error:
        return 128 + error.sigval
    except KeyboardInterrupt:  # while it waits for other machines
        return 130
    except RendezvousError as error:
        print(f"rdcd: the machines do not find each other ({error}): MASTER_ADDR must be the name of one of them, as "
              f"that one knows itself, and MASTER_PORT free there and open to the others", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
