"""The chat client of realm mesin2: the same program as Mesin1's, with another row of the realm table.

It only remembers a command line: `ChatClient.py --realm mesin2`. Read `../Mesin1 (Chat App)/ChatClient.py`; tracebacks
name that file too. Options typed here go on to it.
"""
import runpy
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "Mesin1 (Chat App)" / "ChatClient.py"

if not PROGRAM.is_file():
    sys.exit(f"This is a launcher; the program itself is missing: {PROGRAM}")
sys.argv[1:1] = ["--realm", "mesin2"]
runpy.run_path(str(PROGRAM), run_name="__main__")
