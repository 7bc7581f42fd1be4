"""Commands on the host itself."""

import os
import signal
import subprocess

from .errors import Unusable


def run(command, seconds, folder=None):
    """What a command wrote (both streams), once it has ended with status 0 within `seconds`.

    However this ends, the command has ended too, with all that it started in its process group.
    """
    words = " ".join(str(word) for word in command)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
    except OSError as error:
        raise Unusable(f"`{words}` cannot be run: {error}") from None
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unusable(f"`{words}` did not end within {seconds} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise Unusable(f"`{words}` ended with status {process.returncode}:\n{output}")
    return output
