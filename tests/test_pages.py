"The code that a reader sees on a page runs as pasted, without what the page hides."
import ast, builtins, os, re, subprocess, sys
from pathlib import Path
import pytest, yaml
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent
pages = sorted(f for f in (root/'nbs').glob('*.ipynb') if re.match(r'index|[345]\d_', f.name))
how_to = [f for f in pages if re.match(r'index|36|4', f.name)]
sections = yaml.safe_load((root/'nbs'/'sidebar.yml').read_text())['website']['sidebar']['contents']
reference = [root/'nbs'/o for s in sections if isinstance(s, dict) and s['section']=='Reference' for o in s['contents']]

def visible(f):
    "The code cells of the notebook `f` that the site shows, in one text"
    cells = [c.source for c in read_nb(f).cells if c.cell_type=='code']
    hidden = r'^#\|\s*(hide\b|export|default_exp|(echo|include):\s*false)|^show_doc\('
    def _is_shown(c): return not re.search(hidden, c, re.M) and ('#| eval: false' not in c or 'from fastinit' in c) # what to import is only shown
    return '\n\n'.join(filter(_is_shown, cells))

def star(module):
    "The names that `from module import *` gives"
    names = {}
    exec(f'from {module} import *', names)
    return set(names)

def unknown(code):
    "Names that `code` uses and nothing in it, no import and no builtin gives"
    tree,known,used = ast.parse(code),{*dir(builtins), 'display'},set() # notebooks have `display`
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.names[0].name=='*': known |= star(n.module)
        elif isinstance(n, (ast.Import,ast.ImportFrom)): known |= {(a.asname or a.name).split('.')[0] for a in n.names}
        elif isinstance(n, (ast.FunctionDef,ast.ClassDef)): known.add(n.name)
        elif isinstance(n, ast.arg): known.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name: known.add(n.name)
        elif isinstance(n, ast.Name): (used if isinstance(n.ctx, ast.Load) else known).add(n.id)
    return sorted(used-known)

@pytest.mark.parametrize('f', pages+reference, ids=lambda f: f.stem)
def test_nothing_that_is_hidden_is_needed(f):
    assert not (names := unknown(visible(f))), f'{f.name} shows code that needs {", ".join(names)} from a hidden cell'

def test_unknown_names_are_found():
    assert unknown('import torch\nx = torch.ones(2)\nprint(x, y)')==['y']
    assert unknown('from math import *\ndef f(a): return sqrt(a)+b\nf(1)')==['b']

run = '''
import sys, warnings, matplotlib
matplotlib.use('Agg')
warnings.simplefilter('ignore')
for f in sys.argv[1:]:
    try: exec(compile(open(f).read(), f, 'exec'), {'__name__':'__main__', 'display':print})
    except BaseException as e: sys.exit(f'{f}: {type(e).__name__}: {e}')
'''

def test_runs_as_pasted(tmp_path):
    "Every page, each with names of its own, where the notebooks are; in two processes"
    here = tmp_path/'nbs'
    here.mkdir()
    (tmp_path/'benchmarks').symlink_to(root/'benchmarks')
    for f in pages: (here/f'{f.stem}.py').write_text(visible(f))
    def start(fs): return subprocess.Popen([sys.executable, '-c', run, *(f'{f.stem}.py' for f in fs)], cwd=here, env={**os.environ, 'OMP_NUM_THREADS':'1'}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for p in [start(how_to), start([f for f in pages if f not in how_to])]:
        _,err = p.communicate()
        assert p.returncode==0, err[-2000:]
