"""Imagenette, the article's own data: its simple convnet, its xresnet50 without normalization, with scale and bias, with batchnorm; twenty plain layers.

    python benchmarks/imagenette.py                          (all of imagenette.ini, seed by seed)
    python benchmarks/imagenette.py gpu                      (all at 128 px, from all initializations; `make gpu`)
    python benchmarks/imagenette.py simple --seeds 0 --out benchmarks/imagenette/simple    (then as fastinit-article)

Needs the images in a folder imagenette128: train and val, one folder a class. It may be ended at any time,
as by `timeout 600 make gpu`: the next call goes on after the last epoch that was finished.
"""
import sys
from pathlib import Path
from fastinit.article import inits, main
from sweep import prepare, run_steps

here = Path(__file__).parent

#: The article's size, all images, all initializations
on_gpu = dict(size=128, n_train=0, n_valid=0, schemes=' '.join(inits))

def steps(
    folder, # Of the results
    **kwargs # In place of the settings
):
    """(section, options): the simple convnet, then each network's rates from one seed, then each initialization at its best rate;
    the headline at the article's size"""
    def _step(section, **options): return section,dict(out=str(folder/section), **options, **kwargs)
    yield _step('simple')
    if 'schemes' not in kwargs: yield _step('simple_lsuv') # else they are among those of `simple`
    for k in ('xresnet50','xresnet50_affine','xresnet50_bn','convnet20'):
        yield _step(f'{k}_rates')
        yield _step(k, best_of=str(folder/f'{k}_rates'))
    if 'size' not in kwargs: yield _step('xresnet50_128', best_of=str(folder/'xresnet50_rates')) # else all are at that size

if __name__=='__main__':
    given = sys.argv[1:]
    prepare(__file__)
    if not given: run_steps(__file__, steps(here/'imagenette'))
    elif given==['gpu']: run_steps(__file__, steps(here/'imagenette_128', **on_gpu))
    else: main()
