"""`make mutants`: does a test notice when one place of a module is wrong?

Draws mutants of each module with a seed: a comparison turned round, a number one larger, a condition negated, a keyword left out … Each is
written into a copy of the package; then the examples of the module's notebook run on it, without its exported cells, and the tests that `TESTS`
names. A mutant that changes nothing anybody could see is *equivalent*; `mutants.toml` lists such ones, with the reason.

    python tools/mutants.py                       15 of each module
    python tools/mutants.py stats lsuv --n 40     of two modules
    python tools/mutants.py stats --show 12       what mutant 12 changes; nothing runs

What came of it stands in `mutants.csv`, the last run of each module.
"""
import argparse, ast, csv, json, os, random, shutil, signal, sys, tempfile, time, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Module → tests that know it, besides its notebook; the quick ones first
TESTS = {
    'tensors': 'acts accuracy models', 'layers': 'layers lsuv models properties', 'acts': 'acts lsuv models', 'gains': 'acts edges models', 'rng': 'probe schemes batch', 'state': 'probe edges lsuv', 'misfit': 'warnings probe truth', 'probe': 'probe edges truth lsuv models lifecycle', 'pool': 'pool distributed',
    'stats': 'stats accuracy lsuv models', 'status': 'report truth charts', 'report': 'report charts lsuv models', 'fill': 'schemes models', 'schemes': 'schemes models properties lifecycle', 'branches': 'branches residual',
    'correction': 'correction passes truth edges lsuv models', 'at_activation': 'activation lsuv models truth', 'passes': 'passes correction options truth edges lsuv', 'lsuv': 'options lsuv models truth', 'looks': 'charts', 'metrics': 'charts', 'plot': 'charts', 'learner': 'options batch trained', 'page': 'charts',
    'loaders': 'batch', 'batch': 'batch lifecycle', 'recheck': 'batch', 'trained': 'trained lifecycle', 'watched': 'watch charts', 'watch': 'watch charts', 'compare': 'compare', 'copies': 'compare',
    'callback': 'options batch trained lifecycle', 'article.data': 'parts article', 'article.models': 'parts article', 'article.settings': 'parts article sweeps', 'article.runs': 'parts article sweeps',
    'article.tables': 'tables article sweeps', 'article.command': 'parts article'}
#: Keywords that decide how a chart looks, not what it says: looked at, not tested
LOOKS = set('lw ms mec alpha fontsize figsize zorder ncols elinewidth rotation frameon layout loc clip_on optimize height_ratios'.split())

SWAPS = {ast.Lt:'>=', ast.LtE:'>', ast.Gt:'<=', ast.GtE:'<', ast.Eq:'!=', ast.NotEq:'==', ast.Is:'is not', ast.IsNot:'is', ast.In:'not in', ast.NotIn:'in',
         ast.Add:'-', ast.Sub:'+', ast.Mult:'/', ast.Div:'*', ast.FloorDiv:'*', ast.Mod:'*', ast.Pow:'*', ast.BitAnd:'|', ast.BitOr:'&', ast.And:'or', ast.Or:'and'}

class Source:
    "A module's text, with the places where a mutant can be"
    def __init__(self, text):
        self.raw = text.encode()
        self.starts = [0]
        for line in self.raw.splitlines(True): self.starts.append(self.starts[-1]+len(line))
        self.mutants = [] # (start, end, new text)
        self.visit(ast.parse(text))
        self.mutants.sort()

    def span(self, node): return self.starts[node.lineno-1]+node.col_offset,self.starts[node.end_lineno-1]+node.end_col_offset
    def text(self, node): return self.raw[slice(*self.span(node))].decode()
    def replace(self, node, new): self.mutants.append((*self.span(node), new))

    def between(self, a, b, new):
        "Replace the operator between two nodes, whatever brackets and spaces are around it"
        i,j = self.span(a)[1],self.span(b)[0]
        gap = self.raw[i:j].decode()
        if '#' in gap: return
        inner = gap.strip(' \n()')
        k = i + len(gap[:gap.index(inner)].encode())
        self.mutants.append((k, k+len(inner.encode()), f' {new} ' if new[0].isalpha() else new))

    def visit(self, node):
        "Note the mutants of `node` and of what is in it; annotations, docstrings and what is for a type checker are left out"
        f = getattr(self, f'of_{type(node).__name__}', None)
        if f: f(node)
        skip = {id(getattr(node, k, None)) for k in ('annotation','returns')}
        for _,value in ast.iter_fields(node):
            for o in value if isinstance(value, list) else [value]:
                is_doc = isinstance(o, ast.Expr) and isinstance(o.value, ast.Constant) and isinstance(o.value.value, str)
                if isinstance(o, ast.AST) and id(o) not in skip and not is_doc and not self.is_house_keeping(o): self.visit(o)

    def is_house_keeping(self, node):
        if isinstance(node, ast.AnnAssign) and node.value is None or isinstance(node, ast.keyword) and node.arg in LOOKS: return True
        return isinstance(node, (ast.Import, ast.ImportFrom)) or isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '')=='__all__'

    def of_Compare(self, n):
        for a,op,b in zip([n.left, *n.comparators], n.ops, n.comparators): self.between(a, b, SWAPS[type(op)])
    def of_BinOp(self, n):
        if type(n.op) in SWAPS and not isinstance(n.left, ast.Constant): self.between(n.left, n.right, SWAPS[type(n.op)])
    def of_AugAssign(self, n):
        if type(n.op) in SWAPS: self.between(n.target, n.value, SWAPS[type(n.op)]+'=')
    def of_BoolOp(self, n):
        for a,b in zip(n.values, n.values[1:]): self.between(a, b, SWAPS[type(n.op)])
    def of_UnaryOp(self, n):
        if isinstance(n.op, (ast.Not, ast.USub)): self.replace(n, f'({self.text(n.operand)})')
    def of_Constant(self, n):
        v = n.value
        if isinstance(v, bool): self.replace(n, str(not v))
        elif isinstance(v, (int,float)): self.replace(n, repr(v+1) if v in (0,1) or isinstance(v, int) else repr(v*2))
        elif isinstance(v, str) and v.strip() and self.raw[self.span(n)[0]:][:1] in b'\'"': self.replace(n, repr('XX'+v)) # not a part of an f-string
    def of_test(self, n):
        if not isinstance(n.test, ast.Compare): self.replace(n.test, f'(not ({self.text(n.test)}))') # that is turned round anyway
    of_If = of_IfExp = of_While = of_test
    def of_comprehension(self, n):
        for o in n.ifs:
            if not isinstance(o, ast.Compare): self.replace(o, f'(not ({self.text(o)}))')
    def of_Return(self, n):
        if n.value is not None and not (isinstance(n.value, ast.Constant) and n.value.value is None): self.replace(n.value, 'None')
    def of_Expr(self, n):
        if isinstance(n.value, ast.Call): self.replace(n, 'pass')
    def of_Call(self, n):
        for k in n.keywords:
            if k.arg and k.arg not in LOOKS: self.replace(k, '**{}')
    def of_Slice(self, n):
        if n.lower is not None: self.replace(n.lower, '')
        if n.upper is not None: self.replace(n.upper, '')

    def mutated(self, i):
        a,b,new = self.mutants[i]
        return (self.raw[:a] + new.encode() + self.raw[b:]).decode()

    def describe(self, i):
        "The line as it was and as it is"
        a,b,new = self.mutants[i]
        s,e = self.raw.rfind(b'\n', 0, a)+1,self.raw.find(b'\n', b)
        line = self.raw[:a].count(b'\n')+1
        return line,self.raw[s:e].decode().strip(),(self.raw[s:a]+new.encode()+self.raw[b:e]).decode().strip()

def drawn(src, n, seed, module):
    "Indices of up to `n` mutants that Python can read, drawn with `seed`"
    order = list(range(len(src.mutants)))
    random.Random(f'{seed} {module}').shuffle(order)
    res = []
    for i in order:
        try: ast.parse(src.mutated(i))
        except SyntaxError: continue
        res.append(i)
        if len(res)==n: break
    return res

def notebook_of(module): return next(p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if f'default_exp {module}"' in p.read_text() or f'default_exp {module}\\n' in p.read_text())

def run_notebook(module):
    "Run the cells of the module's notebook that are not exported, on the module as it is in the path"
    import importlib
    mod = importlib.import_module(f'fastinit.{module}')
    env = dict(vars(mod), __name__='__main__', display=print)
    for c in json.loads(notebook_of(module).read_text())['cells']:
        src = ''.join(c['source'])
        directives = [o[2:].strip() for o in src.splitlines() if o.startswith('#|')]
        if c['cell_type']!='code' or any(d.startswith(('export','default_exp','notest','slow','cuda','eval: false')) for d in directives): continue
        exec(compile(src, f'{module} {c["id"]}', 'exec'), env)

def check(module, home, log):
    "In a process of its own: 0 if nothing notices"
    os.setsid()
    fd = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    for k in (1, 2): os.dup2(fd, k)
    os.chdir(home)
    sys.path[:0] = [str(home), str(home/'tests')]
    os.environ['PYTHONPATH'] = str(home)
    try:
        import matplotlib, pytest, torch, warnings
        matplotlib.use('agg')
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            run_notebook(module)
        files = [f for t in TESTS[module].split() if (f := home/f'tests/test_{t}.py').exists()]
        code = int(pytest.main([*map(str, files), '-x', '-q', '-p', 'no:cacheprovider', '--rootdir', str(home)])) if files else 0
    except BaseException as e:
        print(type(e).__name__, e)
        code = 1
    sys.stdout.flush()
    os._exit(code)

def run(module, home, log, limit):
    "Does anybody notice? Also whoever hangs"
    pid = os.fork()
    if not pid: check(module, home, log)
    end = time.time()+limit
    while time.time()<end:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: return status!=0
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True

def home_for(tmp):
    "A checkout of links, but for the package, which is a copy"
    for p in ROOT.iterdir():
        if p.name not in ('fastinit','.git','.venv'): (tmp/p.name).symlink_to(p)
    shutil.copytree(ROOT/'fastinit', tmp/'fastinit', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp

def path_of(root, module): return root/'fastinit'/(module.replace('.', '/')+'.py')

def record(module, seed, noticed, missed, same):
    "The row of `module` in mutants.csv, in place of an older one"
    f = ROOT/'tools/mutants.csv'
    rows = {r['module']:r for r in csv.DictReader(f.open())} if f.exists() else {}
    places = '; '.join(f'{i}: {was} -> {now}' for i,_,was,now in missed)
    rows[module] = dict(module=module, seed=seed, mutants=noticed+len(missed)+same, equivalent=same, noticed=noticed, missed=len(missed), places=places)
    with f.open('w', newline='') as o:
        w = csv.DictWriter(o, list(rows[module]), lineterminator='\n')
        w.writeheader()
        w.writerows(rows[m] for m in TESTS if m in rows)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('modules', nargs='*', help='default: all')
    p.add_argument('--n', type=int, default=15, help='mutants of each module')
    p.add_argument('--seed', default='0')
    p.add_argument('--show', type=int, nargs='*', help='only print these')
    args = p.parse_args()
    sys.dont_write_bytecode = True # a mutant of the same second and size would not be read
    if args.show is None: import fastai.vision.all, pytest, hypothesis, sklearn.datasets # noqa: F401, once, before the forks
    equivalent = tomllib.loads((ROOT/'tools/mutants.toml').read_text())['equivalent']
    total = noticed = 0
    for module in args.modules or TESTS:
        src = Source(path_of(ROOT, module).read_text())
        if args.show is not None:
            for i in args.show: print(i, *src.describe(i), sep='\n  ')
            continue
        with tempfile.TemporaryDirectory() as tmp:
            home,log = home_for(Path(tmp)),Path(tmp)/'log'
            start = time.time()
            if run(module, home, log, 900): sys.exit(f'{module}: a test fails without a mutant\n{log.read_text()[-3000:]}')
            limit,missed,same,idx = 3*(time.time()-start)+30,[],0,drawn(src, args.n, args.seed, module)
            for i in idx:
                line,was,now = src.describe(i)
                if any(e['module']==module and e['was'] in was and e['now'] in now for e in equivalent):
                    same += 1
                    continue
                path_of(home, module).write_text(src.mutated(i))
                if not run(module, home, log, limit): missed.append((i, line, was, now))
            n = len(idx)-same
            print(f'{module}: {n-len(missed)} of {n} noticed' + (f', {same} equivalent' if same else ''), flush=True)
            for i,line,was,now in missed: print(f'  {i} line {line}\n    - {was}\n    + {now}', flush=True)
            record(module, args.seed, n-len(missed), missed, same)
            total,noticed = total+n,noticed+n-len(missed)
    if total: print(f'{noticed} of {total} noticed: {noticed/total:.0%}')

if __name__=='__main__': main()
