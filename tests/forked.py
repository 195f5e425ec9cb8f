"""Commands in processes of their own that share the time of importing: ``forked.py JOBS RESULTS``.

JOBS is a list of ``{"command": [name, *arguments], "ranks": 1, "at": [hook, count, signal], "spoilt": image}``. Several
ranks are one run of as many processes, as torchrun would start them. In the count-th call of the hook the process sends
itself the signal; in the hook ``write`` it has then written a part of a checkpoint, in ``rename`` all of it, but not
under its name. In the second epoch the loss of the spoilt image is NaN. Jobs in a list of their own run beside each
other. RESULTS has status (of each rank), stdout and stderr of each job.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

from grace_lightning import cli
from grace_lightning.module import GraceModule
from grace_lightning.tasks import predict as _predict  # noqa: F401  # imported here, its time is shared
from grace_lightning.tasks import train as _train  # noqa: F401


def disturb(hook, last, number):
    calls = count(1)

    def strike(prepare=lambda: None):
        if next(calls) == last:
            prepare()
            os.kill(os.getpid(), number)

    def fsync(descriptor, real=os.fsync):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(".ckpt"):
            strike(lambda: os.truncate(path, 1000))
        real(descriptor)

    def replace(self, target, real=Path.replace):
        if str(target).endswith(".ckpt"):
            strike()
        return real(self, target)

    def struck(*arguments):
        strike()
        return real(*arguments)

    if hook == "write":
        os.fsync = fsync
    elif hook == "rename":
        Path.replace = replace
    else:
        real = getattr(GraceModule, hook)
        setattr(GraceModule, hook, struck)


def spoil(image):
    def forward(self, data, real=GraceModule.forward):
        factor = torch.nan if image in data.names and self.current_epoch == 1 else 1
        return {head: logits * factor for head, logits in real(self, data).items()}

    GraceModule.forward = forward


def run(job, rank, port):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name, *arguments = job["command"]
    sys.argv = [f"grace-{name}", *arguments]
    if job["ranks"] > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        rank_zero_only.rank = rank  # Lightning has set it when it was imported
    if job["at"]:
        disturb(*job["at"])
    if job["spoilt"]:
        spoil(job["spoilt"])
    getattr(cli, name)()


def fork(job, rank, port, out, err):
    child = os.fork()
    if child:
        return child
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    status = 1
    try:
        run(job, rank, port)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(job):
    job = {"ranks": 1, "at": None, "spoilt": None} | job
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  # closed in end()
    return [fork(job, rank, port, out, err) for rank in range(job["ranks"])], {"out": out, "err": err}


def end(children, files):
    result = {"status": [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]}
    for name, file in files.items():
        file.seek(0)
        with file:
            result[name] = file.read()
    return result


def main():
    results = []
    for jobs in json.loads(Path(sys.argv[1]).read_text()):
        if isinstance(jobs, list):
            results.append([end(*started) for started in [start(job) for job in jobs]])
        else:
            results.append(end(*start(jobs)))
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
