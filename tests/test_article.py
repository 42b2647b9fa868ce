"The command, as a user runs it."
import subprocess, sys
from pathlib import Path
import pandas as pd
import pytest
from PIL import Image

cmd = str(Path(sys.executable).with_name('fastinit-article'))
def article(*args, cwd): return subprocess.run([cmd, *map(str, args)], cwd=cwd, capture_output=True, text=True)

def test_run(tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata=digits\nsize=16\nbs=64\nepochs=2\nlr=1e-3\nschemes=default lsuv\nseeds=0 1\n[tiny]\nmodel=simple_convnet\n')
    r = article('tiny', '--out', 'res', cwd=tmp_path)
    assert r.returncode==0, r.stderr
    for f in ('init_stats.png','accuracy.png','results.csv'): assert f'res/{f}' in r.stdout
    df = pd.read_csv(tmp_path/'res/results.csv')
    assert len(df)==2*2*2 and df.accuracy.between(0,1).all() and set(df.scheme)=={'default','lsuv'}
    for f in ('init_stats.png','accuracy.png'): assert min(Image.open(tmp_path/'res'/f).size)>400
    assert 'default' in r.stdout and 'epoch 2' in r.stdout
    # a seed and a scheme give the same numbers again
    r = article('tiny', '--out', 'again', cwd=tmp_path)
    assert pd.read_csv(tmp_path/'again/results.csv').equals(df)

@pytest.mark.parametrize('args,match', [(('none','--settings','{s}'), "no experiment 'none'"), (('simple','--settings','nowhere.ini'), 'no settings at nowhere.ini')])
def test_bad(args, match, tmp_path):
    s = Path(__file__).parent.parent/'settings.ini'
    r = article(*(str(a).format(s=s) for a in args), cwd=tmp_path)
    assert r.returncode!=0 and match in r.stderr and 'Traceback' not in r.stderr

def test_help(tmp_path):
    r = article('--help', cwd=tmp_path)
    assert r.returncode==0 and 'Folder for results.csv' in r.stdout
