"""With this folder on PYTHONPATH, Pillow's decoding does to a process what the GIF's comment says: planted faults."""

import collections
import importlib.abc
import importlib.util
import itertools
import os
import signal
import sys
import time


def _act(order: str) -> None:
    word, _, argument = order.partition(" ")
    if word == "SIGNAL":
        os.kill(os.getpid(), getattr(signal, argument))
    elif word == "SLEEP":
        time.sleep(float(argument))
    elif word == "SPIN":
        end = time.process_time() + float(argument)
        while time.process_time() < end:
            pass
    elif word == "LOOP":  # in C, never giving the interpreter back
        collections.deque(itertools.repeat(None), maxlen=0)
    elif word == "TAKE":
        bytearray(int(argument))
    elif word == "EXIT":
        os._exit(int(argument))
    elif word == "RAISE":
        raise SystemError(argument)
    elif word == "NOISE":
        os.write(1, b"noise on stdout\n")
        os.write(2, b"noise on stderr\n")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "PIL.Image":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module):
            execute(module)
            crop = module.Image.crop

            def planted(self, *arguments, **named):
                order = self.info.get("comment") or b""
                if order.startswith(b"PLANTED "):
                    _act(order.decode().removeprefix("PLANTED "))
                return crop(self, *arguments, **named)

            module.Image.crop = planted

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
