"Every public name: docstring, documented and hinted arguments, an example in its notebook; a type checker and a linter over the package."
import ast, builtins, dis, importlib, inspect, re, subprocess, sys, types
from functools import reduce
from pathlib import Path
import pytest
from fastcore.docments import docments
from fastcore.nbio import read_nb
import fastinit.all, fastinit.article
from fastinit._modidx import d

root = Path(__file__).resolve().parent.parent
notebooks = {re.sub(r'^\d+_', '', f.stem).replace('article_', 'article.'): f for f in sorted((root/'nbs').glob('*.ipynb'))}
modules = sorted(m.partition('.')[2] for m in d['syms'] if not m.endswith('.article'))
users = {*fastinit.all.__all__, *fastinit.article.__all__}
ADDED_TO = ('InitReport','Learner') # whose methods users call

def public(module):
    "(name, object) of what `fastinit.all` and `fastinit.article` give that this module defines, and of the methods that it adds to users' classes"
    mod = importlib.import_module(f'fastinit.{module}')
    res = {n:getattr(mod, n) for n in mod.__all__ if n in users}
    for k in d['syms'][f'fastinit.{module}']:
        *owner,n = k.removeprefix(f'fastinit.{module}.').split('.')
        if not owner or owner[0] not in (*users, 'Learner') or any(o.startswith('_') for o in (*owner, n.replace('__init__','init').replace('__call__','call'))): continue
        res['.'.join([*owner, n])] = inspect.getattr_static(reduce(getattr, owner, mod), n)
    return res

def missing(name, o):
    "What the documentation of a public name lacks; methods of classes may name their arguments in the docstring"
    if isinstance(o, property): o = o.fget
    if isinstance(o, (staticmethod,classmethod)): o = o.__func__
    if inspect.isclass(o): return [] if o.__dict__.get('__doc__') else ['docstring']
    if not inspect.isfunction(o): return [] # data: test_data_is_explained
    res = [] if o.__doc__ or name.endswith('__init__') else ['docstring']
    comments = '.' not in name or name.endswith('__init__') or name.split('.')[0] in ADDED_TO
    docs = docments(o, full=True, returns=True)
    for k,p in inspect.signature(o).parameters.items():
        if k=='self' or p.kind==p.VAR_KEYWORD: continue # which docments cannot see
        if comments and not docs[k].docment: res.append(f'{k}: comment')
        if p.annotation is p.empty and p.kind!=p.VAR_POSITIONAL: res.append(f'{k}: hint')
    ret = inspect.signature(o).return_annotation
    if ret is inspect.Parameter.empty and not name.endswith('__init__'): res.append('return: hint')
    elif ret is not None and comments and not name.endswith('__init__') and not docs['return'].docment: res.append('return: comment')
    return res

@pytest.mark.parametrize('module', modules)
def test_documented(module):
    lacks = {n:m for n,o in public(module).items() if (m := missing(n, o))}
    assert not lacks, '\n'.join(f'{n}: {", ".join(m)}' for n,m in lacks.items())

@pytest.mark.parametrize('module', modules)
def test_data_is_explained(module):
    "A `#:` line stands over data, or over the data just before it"
    mod = importlib.import_module(f'fastinit.{module}')
    lines = (root/f"fastinit/{module.replace('.', '/')}.py").read_text().splitlines()
    for n in mod.__all__:
        if n not in users: continue
        if inspect.isclass(o := getattr(mod, n)) or inspect.isfunction(o): continue
        i = next(i for i,l in enumerate(lines) if re.match(rf'[\w, ]*\b{n}\b[\w, ]*(:[^=]*)?=', l))
        while re.match(r'\w[\w, ]*=', lines[i-1]): i -= 1
        assert lines[i-1].startswith('#:'), f'{n}: say what it is, in a line that starts with #:'

def functions(module):
    "(name, function, all of its documentation) of public functions"
    for n,o in public(module).items():
        if inspect.isfunction(o) and '.' not in n: yield n,o,' '.join([o.__doc__ or '', *(v.docment or '' for v in docments(o, full=True, returns=True).values())])

def raised(f):
    "Names of the exceptions that the code of `f` itself raises"
    tree = ast.parse(inspect.cleandoc(inspect.getsource(f)))
    return {n.exc.func.id for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)}

@pytest.mark.parametrize('module', modules)
def test_errors_are_named(module):
    lacks = {n: r for n,f,text in functions(module) if (r := [e for e in raised(f) if e not in text])}
    assert not lacks, f'say what is raised: {lacks}'

@pytest.mark.parametrize('module', modules)
def test_shapes_are_named(module):
    "Of every tensor that goes in or comes out"
    lacks = [f'{n}: {k}' for n,f,_ in functions(module) for k,v in docments(f, full=True, returns=True).items()
             if 'Tensor' in str(v.anno) and 'TypeGuard' not in str(v.anno) and not re.search(r'shape|numbers|parameter|[Ss]ample|itself|Share', v.docment or '')]
    assert not lacks, f'say the shape: {lacks}'

def test_sources_are_named():
    from fastinit.all import schemes, act_gain, fans
    for n,f in [*schemes.items(), ('act_gain',act_gain), ('fans',fans)]:
        if n not in ('default','normal'): assert re.search(r'[12][09]\d\d', f.__doc__), n

def cells(module, exported):
    "Source of the code cells of a notebook that are exported, or that are not"
    for c in read_nb(notebooks[module]).cells:
        if c.cell_type=='code' and bool(re.search(r'^#\|\s*export', c.source, re.M))==exported: yield c.source

@pytest.mark.parametrize('module', modules)
def test_examples(module):
    "A cell that `make test` runs uses the name"
    run = [re.sub(r'^\s*[%!].*$', '', s, flags=re.M) for s in cells(module, False) if not re.search(r'^#\|\s*eval:\s*false|^#\|\s*(notest|slow|cuda)\s*$', s, re.M)]
    used = {getattr(n, 'id', None) or getattr(n, 'attr', None) for s in run for n in ast.walk(ast.parse(s)) if isinstance(n, (ast.Name,ast.Attribute))}
    names = {n.split('.')[-1] for n in public(module) if '.' not in n or n.split('.')[0] in ADDED_TO and not n.endswith('__init__')}
    assert not (lacks := sorted(names-used)), f'no example of {", ".join(lacks)} in {notebooks[module].name}'

def test_signatures_show_what_is_passed_on():
    from fastai.learner import Learner
    from fastinit.all import InitReport, KaimingCallback, LSUVCallback, kaiming_, lsuv_, plot_init_stats
    def names(f): return {k for k,p in inspect.signature(f).parameters.items() if p.default is not p.empty}
    assert names(lsuv_)<=names(LSUVCallback) and names(kaiming_)<=names(KaimingCallback)
    for f in (InitReport.plot, Learner.init_report, Learner.compare_inits): assert names(plot_init_stats)<=names(f)

def test_help_is_enough():
    import pydoc
    from fastinit.callback import LSUVCallback
    text = pydoc.plain(pydoc.render_doc(LSUVCallback)).split('Method resolution order')[0]
    assert 'cbs=LSUVCallback()' in text and 'InitError' in text
    for k in inspect.signature(LSUVCallback).parameters: assert re.search(rf'`{k}\b', text), k

@pytest.mark.parametrize('cmd', [['pyrefly','check','--python-interpreter-path',sys.executable], ['ruff','check']], ids=lambda c: c[0])
def test_package_is_clean(cmd):
    "The type checker and the linter find nothing; lines are at most 140 columns"
    r = subprocess.run([Path(sys.executable).with_name(cmd[0]), *cmd[1:]], cwd=root, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr

def test_modules_stay_small():
    "A module fits in a head, a line on a screen; each takes what it needs from others by public names"
    files = [f for f in (root/'fastinit').rglob('*.py') if f.name!='_modidx.py']
    lines = {f.relative_to(root):f.read_text().splitlines() for f in files}
    assert not {str(f):len(ls) for f,ls in lines.items() if len(ls)>300}
    wide = [f'{f}:{i+1}' for f,ls in lines.items() for i,l in enumerate(ls) if len(l)>120]
    assert len(wide)<40, wide
    private = [f'{f}: {l}' for f,ls in lines.items() for l in ls if re.match(r'from (\.|fastinit)[\w.]* import .*\b_[^_]', l)]
    assert not private
    assert len(fastinit.all.__all__)<=36

def _globals_of(code):
    "Names that the functions in `code` look up in their module"
    inner = [_globals_of(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return {o.argval for o in dis.get_instructions(code) if o.opname=='LOAD_GLOBAL'}.union(*inner)

FILES = sorted(f for f in (root/'fastinit').rglob('*.py') if '__' not in f.name and f.name!='_modidx.py')
@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_every_name_is_defined(file):
    "Star imports hide from the linter what a module forgot to import"
    module = importlib.import_module('.'.join(file.relative_to(root).with_suffix('').parts))
    missing = _globals_of(compile(file.read_text(), file, 'exec')) - vars(module).keys() - vars(builtins).keys()
    assert not missing
