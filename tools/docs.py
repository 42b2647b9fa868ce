"Build the site to _docs/ from the notebooks, without Quarto."
import ast, base64, hashlib, html, importlib, inspect, json, os, re, shutil, subprocess, sys
from pathlib import Path
import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parent.parent

def page(name):
    "The page that nbdev's links expect: 01_layers.ipynb → layers.ipynb"
    return re.sub(r'^\d+[a-z]?_', '', name)

def renamed(text):
    "`text` with links to notebooks by their pages' names"
    return re.sub(r'\b\d+[a-z]?_(\w+\.ipynb)', r'\1', text)

def as_written(type):
    "A type as people write it: `collections.abc.Callable | None` → `callable | None`"
    return re.sub(r'\b(?:\w+\.)+', '', type or '').replace('Callable', 'callable').replace('Iterable', 'list')

def parameters(args):
    "(name with its stars, what it is, its default) of each parameter"
    plain = [*args.posonlyargs, *args.args]
    defaults = [None]*(len(plain)-len(args.defaults)) + args.defaults
    stars = [(s, o) for s,o in (('*',args.vararg), ('**',args.kwarg)) if o]
    res = [(o.arg, o, d) for o,d in zip([*plain, *args.kwonlyargs], [*defaults, *args.kw_defaults])]
    return sorted([*res, *((s+o.arg, o, None) for s,o in stars)], key=lambda r: (r[1].lineno, r[1].col_offset))

def signature(m):
    "A documented signature as one line of code and a table of its arguments"
    if '\n' not in m[1]: return m[0]
    head,*lines,end = m[1].splitlines()
    try: args = ast.parse('\n'.join(['def f(', *lines, '): pass'])).body[0].args
    except SyntaxError: return m[0] # a default that is no code
    about = {i: l.partition(' # ')[2] for i,l in enumerate(lines, 2)}
    if not any(about.values()): return m[0]
    gives,_,about_result = end.partition(' # ')
    cell = lambda text: (text or '').replace('|', r'\|')
    code = lambda text: f'`{cell(text)}`' if text else ''
    source = lambda node: ast.unparse(node) if node else ''
    params = parameters(args)
    last = {o.lineno:o for _,o,_ in params} # of a line; the comment there is on it
    words = lambda text: re.sub(r"'(\w*)'", r"`'\1'`", cell(text)) # to be copied: no curly quotes
    meaning = lambda o: words(about[o.lineno]) if last[o.lineno] is o else ''
    rows = [f'| {code(n)} | {code(as_written(source(o.annotation)))} | {code(source(d))} | {meaning(o)} |' for n,o,d in params]
    result = as_written(gives.partition('->')[2].strip(' :'))
    if result: rows.append(f'| *returns* | {code(result)} | | {words(about_result)} |')
    table = ['| Argument | Type | Default | Meaning |', '|---|---|---|---|', *rows]
    for _,o,_ in params: o.annotation = None
    return '\n'.join([f'```python\n{head}{ast.unparse(args)})\n```', '', '::: {.arguments}', '', *table, '', ':::'])

def documented(name):
    "What the heading `name` speaks of, such as `InitReport.summary`; None if it is not fastinit's"
    head,_,tail = name.replace('\\', '').partition('.')
    owner = next((vars(m)[head] for k,m in sys.modules.items() if k.startswith('fastinit') and head in vars(m)), None)
    return inspect.getattr_static(owner, tail, None) if tail and owner is not None else owner

def entry(md):
    "The documentation of one name: a class as such, a property as what it is, the words in upright letters"
    if not (name := re.search(r'^### (\S+)', md, re.M)): return md
    what,about = documented(name[1]),md
    if 'LNone' in md: about = md.replace('LNone', f'L{inspect.getsourcelines(inspect.unwrap(what))[1]}') # of a docstring in several lines
    if inspect.isclass(what): about = about.replace('```python\ndef ', '```python\nclass ', 1)
    if isinstance(what, property):
        about = re.sub(r'```python\ndef (\w+)\(\)(?:->([^\n:]*))?:?(?: # ([^\n]*))?\n```', prop, about)
    about = re.sub(r'(?<=```\n\n)\*(.+)\*$', r'\1', about, flags=re.M) # of several lines only the first would lean
    return about.replace(f'### {name[1]}', '### '+name[1].replace('__', r'\_\_'), 1)

def prop(m):
    "A property: its name, type and meaning"
    meaning = f': {m[3]}' if m[3] else ''
    return f'`{m[1]}`, a property' + (f', `{as_written(m[2])}`' if m[2] else '') + meaning

def text_alone(cells):
    "`cells`, where the code that a text leads to is not shown: no colon, no heading with nothing below it"
    def heading(text): return len(re.match('#*', text)[0])
    res = []
    for c in reversed(cells):
        text,below = ''.join(c['source']).rstrip(),res[-1] if res else None
        if c['cell_type']=='markdown' and (below is None or below['cell_type']=='markdown'):
            *rest,last = text.split('\n')
            level = heading(last)
            if level>1 and below and 0<heading(''.join(below['source']))<=level: text = '\n'.join(rest).rstrip()
            c['source'] = [re.sub(':$', '.', text)]
        if text: res.append(c)
    return res[::-1]

def document_arguments(f):
    "In the notebook `f`, the arguments of each documented function as a table; each chart once"
    nb = json.loads(f.read_text())
    nb['cells'] = text_alone(nb['cells'])
    for c in nb['cells']:
        charts = [o for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
        for o in c.get('outputs', []):
            page = ''.join(o.get('data', {}).get('text/html', ''))
            if charts and 'init-report' in page: o['data']['text/html'] = re.sub('<img[^>]*>', '', page) # the cell shows them already
            md = ''.join(o.get('data', {}).get('text/markdown', ''))
            if md: o['data']['text/markdown'] = re.sub(r'```python\n((?:def|class) .*?)\n```', signature, entry(md), flags=re.S)
    f.write_text(json.dumps(nb))

def stage(cache, site):
    "Copy the processed notebooks under their pages' names, and a configuration without Quarto's own options"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(cache, site)
    for f in site.glob('*.ipynb'):
        document_arguments(f)
        text = re.sub(r'"output-file: [^"]*",?\s*', '', f.read_text()) # Quarto's own
        text = re.sub(r'>fastinit\.[a-z_.]+\.', '>', text.replace('torch.nn.modules.module.Module', 'nn.Module')) # in signatures
        f.write_text(renamed(text))
        f.rename(f.with_name(page(f.name)))
    cfg = yaml.safe_load((site/'_quarto.yml').read_text())
    for f in cfg.pop('metadata-files', []):
        if (path := root/'nbs'/f).exists(): merge(cfg, yaml.safe_load(path.read_text()))
    cfg['format'] = {'html': {k:v for k,v in cfg['format']['html'].items() if k!='keep-md'}}
    cfg.pop('format-links', None)
    contents = cfg['website']['sidebar']['contents']
    cfg['website']['sidebar']['contents'] = with_files(contents, named(contents))
    cfg['project']['output-dir'] = str(root/'_docs')
    (site/'_quarto.yml').write_text(renamed(yaml.safe_dump(cfg, sort_keys=False)))

def named(contents):
    "The notebooks that the sidebar names one by one"
    if isinstance(contents, str): return []
    return [n for o in contents for n in (named(o['contents']) if isinstance(o, dict) else [o])]

def with_files(contents, taken):
    "Sidebar entries with their patterns replaced by the notebooks not `taken`; sections without any are left out"
    if isinstance(contents, str): return sorted(f.name for f in (root/'nbs').glob(contents) if f.name not in taken)
    entries = [{**o, 'contents':with_files(o['contents'], taken)} if isinstance(o, dict) else o for o in contents]
    return [o for o in entries if not isinstance(o, dict) or o['contents']]

def merge(a, b):
    "Update the nested dict `a` with `b`"
    for k,v in b.items():
        if isinstance(v, dict) and isinstance(a.get(k), dict): merge(a[k], v)
        else: a[k] = v

def local_links(out, url):
    "Links to our own documentation become relative, so that the site works from any place"
    for f in out.rglob('*.html'):
        up = '../'*(len(f.relative_to(out).parts)-1)
        text = f.read_text()
        new = re.sub(rf'href="{re.escape(url)}/?([\w./-]*?)(?:\.html)?(#[^"]*)?"', lambda m: f'href="{up}{m[1] or "index"}.html{m[2] or ""}"', text)
        if new!=text: f.write_text(new)

def mathml(out):
    "Formulas as MathML, which browsers draw by themselves: no script from elsewhere"
    for f in out.rglob('*.html'):
        text = f.read_text()
        if 'katex' not in text: continue
        text = re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?', '', text)
        text = re.sub(r'\\([([])(.*?)\\[)\]](?=</span>)', lambda m: convert(html.unescape(m[2]).strip(), display='block' if m[1]=='[' else 'inline'), text, flags=re.S)
        f.write_text(text)

def no_fonts(out):
    "The theme without its import of fonts from elsewhere: the system's will do"
    for f in out.rglob('*.css'):
        if (new := re.sub(r'@import url\(https?:[^)]*\);?', '', text := f.read_text()))!=text: f.write_text(new)

def pictures(out):
    "Pictures that pages show from benchmarks/ come along, in a folder of the site"
    for f in out.rglob('*.html'):
        text = f.read_text()
        for name in set(re.findall(r'src="\.\./benchmarks/([^"]*)"', text)):
            to = out/'benchmarks_files'/name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root/'benchmarks'/name, to)
        if (new := text.replace('src="../benchmarks/', 'src="benchmarks_files/'))!=text: f.write_text(new)

def number(text):
    "`text` with three digits if it is a number with more, else None"
    text = html.unescape(text).strip()
    if not re.fullmatch(r'[-+−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?|[-+]?nan|[-+]?inf|–', text): return None
    if re.fullmatch(r'[-−]0(\.0*)?', text): return text[1:] # no −0
    if not re.fullmatch(r'[-+]?\d*\.\d{2,}', text): return text
    short = f'{float(text) + 0:.3g}' # + 0: no −0
    return f'{float(text):.0f}' if 'e+' in short else short if len(short)<len(text) else text

def cell(m):
    "A cell of a table: numbers marked, so that they are right-aligned, and to three digits"
    tag,attrs,content = m[1],m[2],m[3]
    text = number(content)
    return m[0] if text is None or 'style=' in attrs else f'<{tag}{attrs} class="num">{text}</{tag}>'

def table(m):
    "A table in a box of its own that scrolls where the window is too narrow; pandas' own style gone"
    text = re.sub(r' border="1"| style="text-align: \w+;?"', '', m[0])
    if 'init-report' not in text: text = re.sub(r'<(td)((?: [^>]*)?)>([^<>]*)</td>', cell, text)
    return f'<div class="table-box" tabindex="0">{text}</div>'

def tables(out):
    for f in out.rglob('*.html'):
        text = re.sub(r'<style scoped>.*?</style>', '', f.read_text(), flags=re.S)
        f.write_text(re.sub(r'<table\b.*?</table>', table, text, flags=re.S))

def images(out):
    "Pictures out of the pages into files, of known size, that a browser loads when the reader gets there; each in a box that scrolls"
    (out/'images').mkdir()
    def image(m):
        png = base64.b64decode(m[2])
        name = f'images/{hashlib.sha256(png).hexdigest()[:16]}.png'
        (out/name).write_bytes(png)
        return f'{m[1]}src="{name}"'
    def shown(m):
        src = re.search('src="([^":]*[.]png)"', m[0])
        if not src: return m[0]
        width,height = png_size(out/src[1])
        if (asked := re.search(r' width="(\d+)"', m[0])) and int(asked[1])<width: width,height = int(asked[1]),round(height*int(asked[1])/width)
        img = re.sub(r' (?:width|height|loading|style)="[^"]*"', '', m[0])
        img = img.replace('<img', f'<img loading="lazy" width="{width}" height="{height}" style="--w:{width}px"', 1)
        return f'<span class="chart" tabindex="0">{img}</span>'
    for f in out.glob('*.html'):
        text = re.sub(r'(<img[^>]*?)src="data:image/png;base64,([^"]*)"', image, f.read_text())
        f.write_text(re.sub(r'<img [^>]*>', shown, text))

def printed(out):
    "In what a cell printed, sentences wrap; a table of columns falls apart if it does, and scrolls"
    def line(text): return text if re.search(r'\S {2,}\S', text) else f'<span class="prose">{text or " "}</span>'
    def shown(m):
        lines = [line(o) for o in m[2].split('\n')]
        return m[1] + re.sub(r'(?<=</span>)\n|\n(?=<span)', '', '\n'.join(lines)) + m[3] # a block starts a line of its own
    for f in out.glob('*.html'):
        f.write_text(re.sub(r'(<div class="cell-output[^>]*>\s*<pre><code>)([^<]*)(</code></pre>)', shown, f.read_text()))

def captions(out):
    "Code in the captions of pictures, which are taken for plain text"
    def code(m): return re.sub('`([^`]*)`', r'<code>\1</code>', m[0])
    for f in out.glob('*.html'): f.write_text(re.sub('<figcaption>.*?</figcaption>', code, f.read_text(), flags=re.S))

def png_size(f):
    "Width and height of a PNG, from its header"
    data = f.read_bytes()
    return int.from_bytes(data[16:20], 'big'),int.from_bytes(data[20:24], 'big')

def sources(out):
    "The links `view source` and `edit` lead to the notebook by its own name"
    notebook = {page(f.name):f.name for f in (root/'nbs').glob('*.ipynb')}
    for f in out.glob('*.html'):
        new = re.sub(r'(/(?:edit|blob)/main/nbs/)([\w.]+)', lambda m: m[1]+notebook.get(m[2], m[2]), f.read_text())
        f.write_text(new)

search_words = """(q) => {
    const little = new Set("a an and are as at be can do does for from get have how i in is it my of on or should the this to use using what when where which why will with you".split(" "));
    const words = q.toLowerCase().split(/[^\\w.]+/).filter((w) => w.length > 1 && !little.has(w));
    const asked = words.length ? words : q.toLowerCase().split(/\\s+/);
    const times = (text, w, most) => Math.min(most, (text || "").toLowerCase().split(w).length - 1);
    const named = (e, w) => (e.section || "").toLowerCase().replace(/_$/, "") === w; // the very function
    const score = (e) => asked.reduce((s, w) => s + 30 * named(e, w) + 20 * Math.min(1, times(e.section + " " + e.title + " " + e.href, w, 1)) + times(e.text, w, 5), 0);
    const all = (e) => asked.filter((w) => (e.title + " " + e.section + " " + e.text).toLowerCase().includes(w)).length;
    return index.map((e) => ({ item: e, s: 50 * all(e) + score(e) })).filter((h) => h.s > 0).sort((a, b) => b.s - a.s);
  }"""

def search(out):
    "A search that takes a question: by its words, without those that every page has; Fuse's finds only near copies of the whole"
    f = out/'site_libs/smalldocs.js'
    text,was = f.read_text(),'fuse ? fuse.search(q, { limit }).map((h) => h.item)'
    if was not in text: raise SystemExit(f'{f.name} has another search than the one that is replaced here')
    f.write_text(text.replace(was, f'fuse ? ((found) => (found.length ? found.slice(0, limit) : fuse.search(q, {{ limit }})).map((h) => h.item))(({search_words})(q))'))

def main():
    os.chdir(root)
    cfg,site,out = get_config(),root/'_proc_site',root/'_docs'
    for k in ('fastinit.all','fastinit.article'): importlib.import_module(k) # for what is documented
    refresh_quarto_yml()
    _build_modidx()
    stage(proc_nbs(n_workers=0, force=True), site)
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--quiet', str(site)], check=True)
    shutil.rmtree(site)
    local_links(out, f'{cfg.doc_host}{cfg.doc_baseurl}')
    mathml(out)
    no_fonts(out)
    pictures(out)
    tables(out)
    images(out)
    printed(out)
    captions(out)
    sources(out)
    search(out)
    print(f'the site is in {out.name}/: open {out.name}/index.html')

if __name__=='__main__': main()
