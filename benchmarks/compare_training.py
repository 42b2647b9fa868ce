"""xresnet50 without normalization, trained for its first steps from four initializations at two rates, two seeds each, on digits; writes compare_training.csv, which the how-to page reads.

    python benchmarks/compare_training.py        (some minutes)
"""
import warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import matplotlib; matplotlib.use('agg')
from fastai.vision.all import CrossEntropyLossFlat, Learner, ProgressCallback, set_seed, xresnet50
from fastinit.all import *
from fastinit.article import digits, remove_norm

here = Path(__file__).parent

def main(model=xresnet50, steps=15):
    set_seed(0)
    learn = Learner(digits(size=32, bs=16), remove_norm(model(n_out=10)), loss_func=CrossEntropyLossFlat()).remove_cb(ProgressCallback)
    res = learn.compare_inits(['default','kaiming','lsuv','lsuv_residual'], steps=steps, lrs=[1e-4,1e-2], seeds=2)
    res.losses.to_csv(here/'compare_training.csv', index=False, float_format='%.5g')
    print(res)

if __name__=='__main__': main()
