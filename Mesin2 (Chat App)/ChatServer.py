"""The server of realm mesin2: the same program as in Mesin1's folder, told which realm it is.

Read it there. Options typed behind `python3 ChatServer.py` still count; tracebacks name Mesin1's path.
"""
import runpy
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "Mesin1 (Chat App)" / "ChatServer.py"

if __name__ == "__main__":
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is missing: this folder needs the whole checkout beside it")
    sys.argv[1:1] = ["--realm", "mesin2"]
    runpy.run_path(str(PROGRAM), run_name="__main__")
