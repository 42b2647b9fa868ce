"Write README.md and its pictures from nbs/index.ipynb, the same bytes each time."
import base64, re, shutil
from pathlib import Path
import yaml
from fastcore.nbio import read_nb
from nbdev.processors import FilterDefaults

root = Path(__file__).resolve().parent.parent
pics = root/'README_files'

def html_table(s):
    "A pandas table without its style sheet, which GitHub would show as text"
    return re.sub(r'<style.*?</style>\s*', '', s, flags=re.S).strip()

def output(o, name):
    "Markdown of one output of a cell"
    if o['output_type']=='stream': return f"```\n{''.join(o['text']).rstrip()}\n```"
    d = o.get('data', {})
    if 'image/png' in d:
        (pics/f'{name}.png').write_bytes(base64.b64decode(d['image/png']))
        width = o.get('metadata', {}).get('image/png', {}).get('width', 800)
        return f'<img src="{pics.name}/{name}.png" width="{width}" alt="chart made by the code above">'
    if 'text/html' in d: return html_table(''.join(d['text/html']))
    if 'text/markdown' in d: return ''.join(d['text/markdown'])
    return f"```\n{''.join(d['text/plain']).rstrip()}\n```" if 'text/plain' in d else ''

def cell(c, i):
    "Markdown of one cell"
    if c.cell_type!='code': return c.source
    shown = [md for k,o in enumerate(c.outputs) if (md := output(o, f'cell-{i}-{k}'))]
    return '\n\n'.join([f'```python\n{c.source.rstrip()}\n```', *shown])

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
