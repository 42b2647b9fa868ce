"What is shipped: the wheel, notebooks and package in sync, the README."
import os, re, shutil, subprocess, sys, tarfile, zipfile
from email.parser import Parser
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent

def run(*args, cwd):
    r = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    return r.stdout

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the project's files, without what was built"
    dst = tmp_path_factory.mktemp('project')/'fastinit'
    skip = shutil.ignore_patterns('.git', '.venv', '_proc*', '_docs', 'demo', 'build', 'dist', '*.egg-info', '__pycache__', '.ipynb_checkpoints', '.pytest_cache', '.hypothesis', '*.pt',
                                  'imagenette128', 'cifar10_20k')
    shutil.copytree(root, dst, ignore=skip)
    return dst

@pytest.fixture(scope='module')
def dist(project):
    "The sdist, and the wheel that is built from it"
    run('-m', 'build', '--no-isolation', '.', cwd=project)
    return project/'dist'

@pytest.fixture(scope='module')
def wheel(dist): return zipfile.ZipFile(next(dist.glob('*.whl')))

MODULES = {f'fastinit/{n}.py' for n in '''__init__ __main__ _modidx acts all at_activation batch branches callback compare copies correction fill gains layers learner loaders looks lsuv page passes plot pool probe recheck report rng
    schemes stats status tensors trained watch watched
    article/__init__ article/__main__ article/command article/data article/models article/runs article/settings article/tables'''.split()} | {'fastinit/py.typed','fastinit/article/experiments.ini'}

def test_wheel_contents(wheel): assert {n for n in wheel.namelist() if '.dist-info/' not in n}==MODULES

def test_sdist_contents(dist):
    "What the wheel needs, no tests and no notebooks"
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t: names = {n.partition('/')[2] for n in t.getnames() if t.getmember(n).isfile()}
    assert {n for n in names if '.egg-info/' not in n}==MODULES | {'LICENSE','MANIFEST.in','PKG-INFO','README.md','pyproject.toml','setup.cfg','setup.py'}

def test_twine(dist): run('-m', 'twine', 'check', '--strict', *map(str, dist.iterdir()), cwd=dist)

def test_installed_outside_the_repository(dist, tmp_path):
    "From the wheel, in a folder of its own, with the dependencies that are installed"
    target = tmp_path/'site'
    run('-m', 'pip', 'install', '-q', '--no-deps', '--disable-pip-version-check', '--target', str(target), str(next(dist.glob('*.whl'))), cwd=tmp_path)
    def outside(*args, **env): return subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(target), **env})
    r = outside(sys.executable, '-c', 'import fastinit.all; print(fastinit.__file__)')
    assert Path(r.stdout.strip()).parent.parent==target, r.stderr
    r = outside(sys.executable, '-m', 'fastinit')
    assert r.returncode==0 and not r.stderr, r.stdout+r.stderr
    import fastinit, torch
    assert re.search(rf'^fastinit +{fastinit.__version__}$', r.stdout, re.M) and torch.__version__ in r.stdout
    assert len(re.findall('^ok ', r.stdout, re.M))==2 and 'FAILED' not in r.stdout
    assert outside(sys.executable, str(target/'bin/fastinit-article'), '--help', PYTHONIOENCODING='ascii').returncode==0
    # an LSUV that does nothing is found out, also without asserts and where output is ASCII
    r = outside(sys.executable, '-O', '-c', "import runpy; from fastinit.correction import Affine; Affine.on_ = lambda *_: None; runpy.run_module('fastinit', run_name='__main__')", PYTHONIOENCODING='ascii')
    assert r.returncode==1 and 'FAILED    lsuv_ on a tiny model' in r.stdout, r.stdout+r.stderr

def test_metadata(wheel):
    meta = Parser().parsestr(wheel.read(next(n for n in wheel.namelist() if n.endswith('METADATA'))).decode())
    import fastinit
    assert (meta['Name'], meta['Version'])==('fastai-fastinit', fastinit.__version__)
    assert meta['License-Expression']=='Apache-2.0' and meta['Requires-Python']=='>=3.11'
    deps = {re.split(r'[<>=;\[ ]', d)[0] for d in meta.get_all('Requires-Dist') if 'extra' not in d}
    assert deps=={'fastai','fastcore','fastprogress','matplotlib','numpy','pandas','scikit-learn','torch'}
    assert set(meta.get_all('Provides-Extra'))=={'bench','dev','docs','zoo'}
    assert any('Python :: 3.13' in c for c in meta.get_all('Classifier')) and '# fastinit' in meta.get_payload()
    links = re.findall(r'\]\(([^)]+)', meta.get_payload()) + re.findall(r'src="([^"]+)"', meta.get_payload())
    assert len(links)>10 and all(re.match('https?:|#', l) for l in links) # an index page has nothing beside it
    entry = wheel.read(next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'fastinit-article = fastinit.article.command:main' in entry and 'fastinit = fastinit._modidx:d' in entry

def test_lowest_versions():
    "Those that are tested are those that are declared"
    lines = (root/'setup.cfg').read_text().partition('install_requires =')[2].partition('[')[0].split()
    declared = dict(l.split('>=') for l in lines)
    tested = dict(l.split('==') for l in (root/'tools/lowest.txt').read_text().splitlines() if not l.startswith('#'))
    assert declared.keys()==tested.keys() and all(f'{tested[n]}.'.startswith(f'{v}.') for n,v in declared.items())

def files(path, *folders): return {f.relative_to(path):f.read_bytes() for d in folders for f in sorted((path/d).rglob('*')) if f.is_file() and '__pycache__' not in f.parts}

def test_notebooks_and_package_in_sync(project):
    was = files(project, 'nbs', 'fastinit')
    for cmd in ('export', 'clean'): run('-c', f'from nbdev.{"doclinks" if cmd=="export" else "clean"} import nbdev_{cmd}; nbdev_{cmd}()', cwd=project)
    now = files(project, 'nbs', 'fastinit')
    assert was.keys()==now.keys()
    for f in was: assert was[f]==now[f], f'{f} is not what the notebooks give: run `make prepare`'

def test_readme(project):
    was = files(project, 'README_files') | {'README': (project/'README.md').read_bytes()}
    run('tools/readme.py', cwd=project)
    assert was==files(project, 'README_files') | {'README': (project/'README.md').read_bytes()}, 'README.md is not what nbs/index.ipynb gives: run `make readme`'
    text = (project/'README.md').read_text()
    links = re.findall(r'\]\(([^)#]+)', text) + re.findall(r'src="([^"]+)"', text)
    assert links
    for l in links: assert l.startswith('http') or (project/l).exists(), f'{l} in README.md leads nowhere'

def test_notebooks_hold_their_figures():
    from fastcore.nbio import read_nb
    for nb in ('12_plot','18_callback','index'):
        outs = [o for c in read_nb(root/f'nbs/{nb}.ipynb').cells if c.cell_type=='code' for o in c.outputs]
        assert any('image/png' in o.get('data', {}) for o in outs), f'{nb} has no saved figure: run `make prepare`'
        assert not any(str(root) in str(o) or '/tmp/' in str(o) for o in outs), f'{nb} holds a path of one machine'
