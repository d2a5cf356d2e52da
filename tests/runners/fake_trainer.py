"""A trainer that prints real lines and then does what it is told to; run as a program by the tests."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

ALLOCATOR = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.50 GiB. GPU 5 has a total capacity of "
    "79.18 GiB of which 1.25 GiB is free."
)


def step(number, step_s=0.5, **more):
    print(json.dumps({"step": number, "step_s": step_s, "loss": 9 - 0.1 * number, **more}), flush=True)


def train(n_steps, **more):
    for number in range(1, int(n_steps) + 1):
        step(number, **more)


def measured(n_steps, peak="40e9"):
    train(n_steps, peak_memory_bytes=float(peak))


def crash(n_steps, status):
    train(n_steps)
    sys.exit(int(status))


def raise_error(n_steps):
    train(n_steps)
    raise RuntimeError("a kernel was given a wrong shape")


def killed(n_steps, number):
    train(n_steps)
    os.kill(os.getpid(), int(number))


def preempted(attempts, attempt):
    """Ended from outside at every try but the third."""
    with Path(attempts).open("a") as diary:
        diary.write(f"{attempt}\n")
    if int(attempt) < 2:
        killed(3, signal.SIGTERM)
    train(8)


def hang(n_steps):
    train(n_steps)
    time.sleep(600)


def stubborn(n_steps):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(n_steps)


def closes_its_output(n_steps):
    train(n_steps)
    os.close(1)
    os.close(2)
    time.sleep(600)


def leaves_children(n_steps, diary, *, ends=True):
    """A child, a grandchild in a session of its own, and one that ignores SIGTERM."""
    shell = f"trap '' TERM; echo $$ >> {diary}; sleep 600 & echo $! >> {diary}; wait"
    subprocess.Popen(["sh", "-c", shell])
    subprocess.Popen(["setsid", "sh", "-c", shell], stdout=subprocess.DEVNULL)
    while len(Path(diary).read_text().split() if Path(diary).exists() else []) < 4:
        time.sleep(0.02)
    train(n_steps)
    if not ends:
        time.sleep(600)


def leaves_children_and_hangs(n_steps, diary):
    leaves_children(n_steps, diary, ends=False)


def out_of_host_memory():
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    hoard = []
    while True:
        hoard.append(bytearray(2**26))


def out_of_device_memory(n_steps):
    train(n_steps)
    print(f"[rank5]: Traceback (most recent call last):\n[rank5]: {ALLOCATOR}", flush=True)
    sys.exit(1)


def talks_a_lot(n_steps, n_lines):
    for i in range(int(n_lines)):
        print(f"[rank{i % 8}]: line {i} of many, with nothing in it that anybody needs to read")
    train(n_steps)


def nan(n_steps):
    for number in range(1, int(n_steps) + 1):
        step(number, loss=float("nan") if number > 3 else 5.0)


def another_batch(n_steps):
    train(n_steps, global_batch=7)


def refuses(*_):
    print(
        "usage: train.py [-h] [--tp TP]\ntrain.py: error: argument --tp: invalid choice: 3", file=sys.stderr
    )
    sys.exit(2)


def says(words):
    """Its words, its environment and where it is, for whom it may concern."""
    Path(words).write_text(json.dumps({"argv": sys.argv[3:], "cwd": os.getcwd(), "env": dict(os.environ)}))
    train(10)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:] if sys.argv[1] != "says" else sys.argv[2:3])
