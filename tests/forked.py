"""Runs of grace-train in processes of their own that share the time of importing: ``forked.py JOBS RESULTS``.

JOBS is a list of ``{"arguments": [...], "at": [hook, count], "signal": number}``: in the count-th call of the hook the
process sends itself the signal, and in the hook ``write`` has then written half of a checkpoint; the signal 0 turns
the loss into NaN instead. RESULTS has the status, stdout and stderr of each.
"""

import io
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch

from grace_lightning import cli
from grace_lightning.callbacks import checkpoint
from grace_lightning.module import GraceModule
from grace_lightning.tasks import train as _train  # noqa: F401  # imported here, its time is shared


def disturb(hook, count, number):
    calls = 0

    def is_now():
        nonlocal calls
        calls += 1
        return calls == count

    if hook == "write":

        def save(content, file):
            whole = io.BytesIO()
            torch.save(content, whole)
            now = is_now()
            file.write(whole.getvalue()[: 1000 if now else None])
            file.flush()
            if now:
                os.kill(os.getpid(), number)

        checkpoint.torch = type("torch", (), {"save": staticmethod(save), "load": torch.load})
        return
    owner = checkpoint if hook == "_rename" else GraceModule
    real = getattr(owner, hook)

    def disturbed(*arguments):
        now = is_now()
        if now and number:
            os.kill(os.getpid(), number)
        result = real(*arguments)
        return {head: logits * torch.nan for head, logits in result.items()} if now and not number else result

    setattr(owner, hook, disturbed)


def run(job, out, err):
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["grace-train", *job["arguments"]]
    if job.get("at"):
        disturb(*job["at"], job["signal"])
    cli.train()


def main():
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            if not (child := os.fork()):
                status = 1
                try:
                    run(job, out, err)
                    status = 0
                except SystemExit as end:
                    status = end.code or 0
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in (out, err):
                file.seek(0)
            results.append({"status": status, "out": out.read(), "err": err.read()})
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
