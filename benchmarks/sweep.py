"What the sweeps share: all sections of a script's settings in their order, seed by seed, so that whatever is finished is balanced."
import sys
from pathlib import Path
import torch
from fastinit.article import main, prog, read_experiment

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
):
    "Run every step for the first of its section's seeds, then for the next; what is done is not repeated"
    settings = Path(script).with_suffix('.ini')
    steps = [(section, options, read_experiment(section, settings)['seeds']) for section,options in steps]
    for n in range(1, max(len(seeds) for *_,seeds in steps)+1):
        for section,options,seeds in steps: # the earlier seeds too, which are done, for the charts
            if n<=len(seeds): main(section, **{'settings':str(settings), 'seeds':' '.join(map(str, seeds[:n])), **options})
