"Write README.md and its pictures from nbs/index.ipynb, the same bytes each time."
import base64, re, shutil
from html.parser import HTMLParser
from pathlib import Path
import yaml
from fastcore.nbio import read_nb
from nbdev.processors import FilterDefaults

root = Path(__file__).resolve().parent.parent
pics = root/'README_files'

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

def output(o, name):
    "Markdown of one output of a cell"
    if o['output_type']=='stream': return f"```\n{''.join(o['text']).rstrip()}\n```"
    d = o.get('data', {})
    if 'image/png' in d:
        (pics/f'{name}.png').write_bytes(base64.b64decode(d['image/png']))
        width = o.get('metadata', {}).get('image/png', {}).get('width', 800)
        return f'<img src="{pics.name}/{name}.png" width="{width}" alt="chart">'
    if 'text/html' in d: return table(''.join(d['text/html']))
    if 'text/markdown' in d: return ''.join(d['text/markdown'])
    return f"```\n{''.join(d['text/plain']).rstrip()}\n```" if 'text/plain' in d else ''

def cell(c, i):
    "Markdown of one cell"
    if c.cell_type!='code':
        text = re.sub(r'\[(`[^`]+`)\]\(https?:[^)]*\)', r'\1', c.source) # links into the site: GitHub has the notebooks
        return re.sub(r'\]\((\d+\w*\.ipynb)', r'](nbs/\1', text)
    shown = [md for k,o in enumerate(c.outputs) if (md := output(o, f'cell-{i}-{k}'))]
    source = [] if re.search(r'^#\|\s*echo:\s*false', c.source, re.M) else [f'```python\n{c.source.rstrip()}\n```']
    return '\n\n'.join([*source, *shown])

def main():
    nb = read_nb(root/'nbs/index.ipynb')
    FilterDefaults()(nb)
    shutil.rmtree(pics, ignore_errors=True)
    pics.mkdir()
    front,_,*cells = [c for c in nb.cells if c.source.strip()] # after the front matter comes nbdev's own note
    head = yaml.safe_load(front.source.strip().strip('-'))
    body = [cell(c, i) for i,c in enumerate(cells)]
    top = ['<!-- made from nbs/index.ipynb by `make readme` -->', f"# {head['title']}", f"> {head['description']}"]
    (root/'README.md').write_text('\n\n'.join([*top, *body]) + '\n')

if __name__=='__main__': main()
