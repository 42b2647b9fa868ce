"Build the site to _docs/ from the notebooks, without Quarto."
import html, os, re, shutil, subprocess, sys
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

def stage(cache, site):
    "Copy the processed notebooks under their pages' names, and a configuration without Quarto's own options"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(cache, site)
    for f in site.glob('*.ipynb'):
        text = re.sub(r'"output-file: [^"]*",?\s*', '', f.read_text()) # Quarto's own
        text = re.sub(r'>fastinit\.[a-z_.]+\.', '>', text.replace('torch.nn.modules.module.Module', 'nn.Module')) # in signatures
        f.write_text(renamed(text))
        f.rename(f.with_name(page(f.name)))
    cfg = yaml.safe_load((site/'_quarto.yml').read_text())
    for f in cfg.pop('metadata-files', []):
        if (path := root/'nbs'/f).exists(): merge(cfg, yaml.safe_load(path.read_text()))
    cfg['format'] = {'html': {k:v for k,v in cfg['format']['html'].items() if k!='keep-md'}}
    cfg.pop('format-links', None)
    cfg['website']['sidebar']['contents'] = with_files(cfg['website']['sidebar']['contents'])
    cfg['project']['output-dir'] = str(root/'_docs')
    (site/'_quarto.yml').write_text(renamed(yaml.safe_dump(cfg, sort_keys=False)))

def with_files(contents):
    "Sidebar entries with their patterns replaced by the notebooks that there are; sections without any are left out"
    if isinstance(contents, str): return sorted(f.name for f in (root/'nbs').glob(contents))
    entries = [{**o, 'contents':with_files(o['contents'])} if isinstance(o, dict) else o for o in contents]
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

def main():
    os.chdir(root)
    cfg,site,out = get_config(),root/'_proc_site',root/'_docs'
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
    print(f'the site is in {out.name}/: open {out.name}/index.html')

if __name__=='__main__': main()
