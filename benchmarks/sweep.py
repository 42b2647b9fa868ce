"What the sweeps share: all sections of a script's settings in their order, seed by seed, so that whatever is finished is balanced."
import sys
from pathlib import Path
import torch
from fastinit.article import main, prog

def prepare(
    script, # Its file
):
    "Let `fastinit-article`'s command, called in this script, read the settings beside it and note how it was called"
    torch.set_flush_denormal(True) # of a vanishing signal, which would take four times as long
    prog[:] = ['python', f'benchmarks/{Path(script).name}']
    if '--settings' not in sys.argv: sys.argv += ['--settings', str(Path(script).with_suffix('.ini'))]

def run_steps(
    script, # Its file, beside which its settings are
    steps, # (section, options of `main`), in their order
    seeds, # All of them
):
    "Run every step for the first seed, then for the next; what is done is not repeated"
    steps = list(steps)
    for i in range(len(seeds)):
        upto = ' '.join(map(str, seeds[:i+1])) # the earlier ones, which are done, for the charts
        for section,options in steps: main(section, **{'settings':str(Path(script).with_suffix('.ini')), 'seeds':upto, **options})
