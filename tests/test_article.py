"The command, as a user runs it, and the data it takes."
import gzip, json, re, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd
import pytest
from PIL import Image
from fastai.vision.all import URLs
from fastinit import article
from fastinit.article import fashion_mnist, get_data, imagenette, read_experiment, run_experiment

cmd = str(Path(sys.executable).with_name('fastinit-article'))
settings = Path(__file__).parent.parent/'settings.ini'
tiny = dict(size=16, bs=64, epochs=2, lrs='1e-3 3e-3', schemes='default lsuv_activation', seeds='0', n_train=320, n_valid=100)
charts = 'init_stats after_relu init_stats_zoom accuracy lr_range'.split()
def run(*args, cwd): return subprocess.run([cmd, *map(str, args)], cwd=cwd, capture_output=True, text=True)
def assert_same(a, b): pd.testing.assert_frame_equal(a.drop(columns='cpu_s'), b.drop(columns='cpu_s'), rtol=1e-3) # another number of threads rounds differently

def test_run(tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata=digits\nopt=adam\n' + '\n'.join(f'{k}={v}' for k,v in tiny.items()) + '\n[tiny]\nmodel=simple_convnet\n')
    r = run('tiny', '--out', 'res', cwd=tmp_path)
    assert r.returncode==0, r.stderr
    for f in (*[f'{c}.png' for c in charts], 'results.csv', 'results.txt', 'run.json', 'init_stats.csv'):
        assert f'res/{f}' in r.stdout and (tmp_path/'res'/f).stat().st_size>100
    df = pd.read_csv(tmp_path/'res/results.csv')
    assert len(df)==2*2*2 and df.accuracy.between(0,1).all() and set(df.scheme)=={'default','lsuv_activation'} and (df.cpu_s>0).all()
    assert not list((tmp_path/'res').glob('*.svg'))
    for c in charts:
        im = Image.open(tmp_path/f'res/{c}.png')
        assert min(im.size)>400 and len(im.getcolors(2**20))<=128
    assert 'default' in r.stdout and 'after epoch 2' in r.stdout and '0.003' in r.stdout
    info = json.loads((tmp_path/'res/run.json').read_text())
    assert info['command']=='fastinit-article tiny' and info['settings']['n_train']==320 and {'fastai','torch'}<=set(info)
    # half of it, as after an interruption: what is missing is made, and the numbers are the same again
    (tmp_path/'again').mkdir()
    (tmp_path/'again/run.json').write_text(json.dumps(info))
    df[:5].to_csv(tmp_path/'again/results.csv', index=False)
    cfg = read_experiment('tiny', tmp_path/'settings.ini')
    run_experiment(cfg, tmp_path/'again')
    assert_same(pd.read_csv(tmp_path/'again/results.csv'), df)
    # other settings do not go into the same file
    with pytest.raises(ValueError, match='was made with size = 16, not 32: pass another --out'): run_experiment({**cfg, 'size':32}, tmp_path/'again')

@pytest.mark.parametrize('args,kwargs,match', [
    (('none',), {}, "no experiment 'none' in"),
    (('simple',), dict(settings='nowhere.ini'), 'no settings at nowhere.ini'),
    (('simple',), dict(schemes='lsuv magic'), "--schemes = 'lsuv magic' is not a list"),
    (('simple',), dict(lrs='-1'), "--lrs = '-1' is not a list, separated by spaces, each a positive number"),
    (('simple',), dict(n_train=-5), "--n-train = '-5' is not a whole number, 0 or more"),
    (('simple',), dict(data='nowhere'), "data = 'nowhere' is not a folder; known names: digits, fashion_mnist, imagenette"),
    (('simple',), dict(data='.'), 'no images in .')])
def test_bad(args, kwargs, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='fastinit-article: .*'+re.escape(match)): article.main(*args, **{'settings':settings, **kwargs})
    assert not (tmp_path/'results').exists()

def test_bad_as_seen(tmp_path):
    r = run('none', '--settings', settings, cwd=tmp_path)
    assert r.returncode!=0 and r.stderr.splitlines()[-1].startswith("fastinit-article: no experiment 'none'") and 'Traceback' not in r.stderr

def test_help(tmp_path):
    r = run('--help', cwd=tmp_path)
    text = ' '.join(r.stdout.split())
    assert r.returncode==0
    for o in ('Folder for results.csv', '(default: results)', '--n-train', 'Peak learning rates', 'adam or sgd; default: the section'): assert o in text

def test_settings_name_every_experiment():
    for name in ('simple','xresnet50','xresnet50_bn','xresnet50_affine'):
        cfg = read_experiment(name, settings)
        assert len(cfg['lrs'])>=4 and len(cfg['seeds'])>=3 and cfg['schemes']==list(article.inits)[:9]

def idx(path, a, name, zipped):
    path.mkdir(parents=True, exist_ok=True)
    b = bytes([0,0,8,a.ndim]) + np.array(a.shape, '>i4').tobytes() + a.astype(np.uint8).tobytes()
    (gzip.open if zipped else open)(path/(name+('.gz' if zipped else '')), 'wb').write(b)

@pytest.mark.parametrize('sub,zipped', [('',True), ('FashionMNIST/raw',False)])
def test_fashion_mnist(sub, zipped, tmp_path):
    "Debian's layout and torchvision's"
    for part,n in (('train',50),('t10k',20)):
        idx(tmp_path/sub, np.arange(n).repeat(784).reshape(n,28,28), f'{part}-images-idx3-ubyte', zipped)
        idx(tmp_path/sub, np.arange(n)%10, f'{part}-labels-idx1-ubyte', zipped)
    dls = get_data(str(tmp_path), size=28, bs=8, n_train=30, n_valid=10)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c)==(30,10,10)
    x,y = dls.train_ds[0]
    assert x.shape==(3,28,28) and len({int(o[1]) for o in dls.train_ds})>1
    full = get_data(str(tmp_path), size=28, bs=8, n_train=0, n_valid=0)
    assert (len(full.train_ds), len(full.valid_ds))==(50,20)
    values = np.array([float(o[0][0,0,0]) for o in [*full.train_ds, *full.valid_ds]])
    labels = np.array([int(o[1]) for o in [*full.train_ds, *full.valid_ds]])
    i = np.argsort(values[:50])
    assert (labels[:50][i]==np.arange(50)%10).all() # images and labels still belong together
    again = get_data(str(tmp_path), size=28, bs=8, n_train=30, n_valid=10)
    assert all(a[1]==b[1] for a,b in zip(dls.train_ds, again.train_ds))

def test_fashion_mnist_missing(monkeypatch):
    monkeypatch.setattr(article.data, 'fashion_paths', [])
    with pytest.raises(FileNotFoundError, match='apt-get install dataset-fashion-mnist'): fashion_mnist()

@pytest.fixture
def images(tmp_path):
    "A tree as Imagenette's: train and val, a folder a class, colour photos of several sizes and a grey one"
    rng = np.random.default_rng(0)
    for part,n in (('train',12),('val',4)):
        for c,wnid in enumerate(('n01440764','n02102040','n03888257')):
            d = tmp_path/'imagenette2-160'/part/wnid
            d.mkdir(parents=True)
            for i in range(n):
                a = rng.integers(0, 80, (160+i, 170, 3), dtype=np.uint8)
                a[...,c] += 150
                Image.fromarray(a[...,0] if i==0 else a).save(d/f'{wnid}_{i}.JPEG')
    return tmp_path/'imagenette2-160'

def test_imagenette(images, monkeypatch):
    asked = []
    monkeypatch.setattr(article.data, 'untar_data', lambda url: (asked.append(url), images)[1])
    dls = get_data('imagenette', size=64, bs=6, n_train=0, n_valid=0)
    assert asked==[URLs.IMAGENETTE_160] and (len(dls.train_ds), len(dls.valid_ds), dls.c)==(36,12,3)
    assert {Path(f).parent.parent.name for f in dls.valid_ds.items}=={'val'}
    x,y = dls.one_batch()
    assert x.shape==(6,3,64,64) and abs(float(x.mean()))<3
    few = get_data('imagenette', size=64, bs=6, n_train=9, n_valid=5)
    assert (len(few.train_ds), len(few.valid_ds))==(9,5) and list(few.train_ds.items)==list(get_data('imagenette', size=64, bs=6, n_train=9, n_valid=5).train_ds.items)
    cfg = dict(read_experiment('simple', settings), data='imagenette', size=64, bs=6, epochs=3, lrs=[1e-2], schemes=['lsuv'], seeds=[0])
    assert run_experiment(cfg).accuracy.iloc[-1]>0.6 # three colours

def test_folder_without_split(images):
    dls = get_data(str(images/'train'), size=32, bs=6, n_train=0, n_valid=0)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c)==(29,7,3)

def test_imagenette_without_network(monkeypatch):
    def _untar(url): raise OSError('no route to host')
    monkeypatch.setattr(article.data, 'untar_data', _untar)
    with pytest.raises(FileNotFoundError, match='no route to host.*--data FOLDER'): imagenette()
