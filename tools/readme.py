"Write README.md and its pictures from nbs/index.ipynb, the same bytes each time."
import base64, re, shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path
import yaml
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

root = Path(__file__).resolve().parent.parent
pics = root/'README_files'
cfg = get_config()
site = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')

class Rows(HTMLParser):
    "The cells of a pandas table, row by row"
    def __init__(self, html):
        super().__init__()
        self.rows = []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag=='tr': self.rows.append([])
        if tag in ('td','th'): self.rows[-1].append('')
    def handle_data(self, data):
        if self.rows and self.rows[-1]: self.rows[-1][-1] += data.strip().replace('|', r'\|')

def table(html):
    "Markdown of a pandas table with one row of column names"
    head,*rows = Rows(html).rows
    lines = [head, ['---']*len(head), *rows]
    return '\n'.join(f"| {' | '.join(l)} |" for l in lines)

def report(html):
    "Markdown of a report: its sentence, its table, its advice"
    about,_,rest = html.partition('<table')
    text,_,after = rest.partition('</table>')
    words = lambda part: re.sub(r'</?b>', '**', re.sub(r'</?(?:p|div|h\d|img)[^>]*>', '\n', part)).strip()
    return '\n\n'.join(filter(None, [words(about), table(f'<table{text}</table>'), words(after)]))

def option(source, name, default=''):
    "What a directive of a cell says: `#| fig-alt: …`"
    found = re.search(rf'^#\| *{name}: *(.*)$', source, re.M)
    return yaml.safe_load(found[1]) if found else default

def picture(o, name, source):
    "Markdown of a chart, with its words for who cannot see it and its caption; the file it is in"
    (pics/f'{name}.png').write_bytes(base64.b64decode(o['data']['image/png']))
    width = o.get('metadata', {}).get('image/png', {}).get('width', 800)
    img = f'<img src="{pics.name}/{name}.png" width="{width}" alt="{escape(option(source, "fig-alt", "chart"))}">'
    return '\n\n'.join([img, *(f'*{c}*' for c in [option(source, 'fig-cap')] if c)])

def output(o, name, source):
    "Markdown of one output of a cell"
    if o['output_type']=='stream': return f"```\n{''.join(o['text']).rstrip()}\n```"
    d = o.get('data', {})
    if 'image/png' in d: return picture(o, name, source)
    if 'text/html' in d: return report(''.join(d['text/html']))
    if 'text/markdown' in d: return ''.join(d['text/markdown'])
    return f"```\n{''.join(d['text/plain']).rstrip()}\n```" if 'text/plain' in d else ''

def cell(c, i):
    "Markdown of one cell"
    if c.cell_type!='code': return c.source
    shown = [md for k,o in enumerate(c.outputs) if (md := output(o, f'cell-{i}-{k}', c.source))]
    code = re.sub(r'^#\|.*\n', '', c.source, flags=re.M).rstrip()
    return '\n\n'.join([*([] if option(c.source, 'echo') is False else [f'```python\n{code}\n```']), *shown])

def main():
    nb = read_nb(root/'nbs/index.ipynb')
    FilterDefaults()(nb)
    shutil.rmtree(pics, ignore_errors=True)
    pics.mkdir()
    front,_,*cells = [c for c in nb.cells if c.source.strip()] # after the front matter comes nbdev's own note
    head = yaml.safe_load(front.source.strip().strip('-'))
    body = [cell(c, i) for i,c in enumerate(cells)]
    top = ['<!-- made from nbs/index.ipynb by `make readme` -->', f"# {head['title']}", f"> {head['description']}"]
    text = re.sub(r'\]\(\d+[a-z]?_(\w+)\.ipynb', rf']({site}/\1.html', '\n\n'.join([*top, *body])) # pages of the site, which render everywhere
    (root/'README.md').write_text(text + '\n')

if __name__=='__main__': main()
