"What is shipped: the wheel, notebooks and package in sync, the README."
import re, shutil, subprocess, sys, zipfile
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
    skip = shutil.ignore_patterns('.git', '.venv', '_proc*', '_docs', 'demo', 'build', 'dist', '*.egg-info', '__pycache__', '.ipynb_checkpoints', '.pytest_cache', '.hypothesis')
    shutil.copytree(root, dst, ignore=skip)
    return dst

@pytest.fixture(scope='module')
def wheel(project):
    run('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', 'dist', '.', cwd=project)
    return zipfile.ZipFile(next((project/'dist').glob('*.whl')))

def test_contents(wheel):
    names = [n for n in wheel.namelist() if '.dist-info/' not in n]
    modules = {f'fastinit/{n}.py' for n in '__init__ _modidx all article callback layers lsuv plot schemes stats'.split()}
    assert set(names)==modules

def test_metadata(wheel):
    meta = Parser().parsestr(wheel.read(next(n for n in wheel.namelist() if n.endswith('METADATA'))).decode())
    import fastinit
    assert (meta['Name'], meta['Version'])==('fastai-fastinit', fastinit.__version__)
    assert meta['License-Expression']=='Apache-2.0' and meta['Requires-Python']=='>=3.10'
    deps = {re.split(r'[<>=;\[ ]', d)[0] for d in meta.get_all('Requires-Dist') if 'extra' not in d}
    assert deps=={'fastai','fastcore','fastprogress','matplotlib','numpy','pandas','scikit-learn','torch'}
    assert set(meta.get_all('Provides-Extra'))=={'bench','dev','docs'}
    assert any('Python :: 3.13' in c for c in meta.get_all('Classifier')) and '# fastinit' in meta.get_payload()
    entry = wheel.read(next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'fastinit-article = fastinit.article:main' in entry and 'fastinit = fastinit._modidx:d' in entry

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
    for nb in ('04_plot','05_callback','index'):
        outs = [o for c in read_nb(root/f'nbs/{nb}.ipynb').cells if c.cell_type=='code' for o in c.outputs]
        assert any('image/png' in o.get('data', {}) for o in outs), f'{nb} has no saved figure: run `make prepare`'
        assert not any(str(root) in str(o) or '/tmp/' in str(o) for o in outs), f'{nb} holds a path of one machine'
