"Make the pictures in the notebooks' outputs light: at most 128 colours, and no more pixels than they are shown with."
import base64, io, re
from pathlib import Path
from fastcore.nbio import read_nb, write_nb
from PIL import Image
from fastinit.looks import few_colors

root = Path(__file__).resolve().parent.parent

def light(png, width=None):
    "The base64 text of a PNG, made light; the same text where it is so already"
    im = Image.open(io.BytesIO(base64.b64decode(png)))
    small = width is None or im.width<=width
    if small and im.mode=='P' and im.getcolors(128): return png
    if not small: im = im.convert('RGB').resize((width, round(im.height*width/im.width)), Image.Resampling.LANCZOS)
    few_colors(im).save(buf := io.BytesIO(), 'PNG', optimize=True)
    return base64.b64encode(buf.getvalue()).decode()

def as_shown(text):
    "What a terminal shows of `text` at its end: progress bars are overwritten"
    return ''.join(line.rstrip('\r').rsplit('\r', 1)[-1].rstrip(' ')+'\n' for line in text.split('\n') if line.strip()) if '\r' in text else text

def lighten(output):
    "Make a cell's output light: its pictures, those within its HTML, and what a progress bar left"
    if output['output_type']=='stream': output['text'] = as_shown(''.join(output['text']).replace('\r\n', '\n')).splitlines(keepends=True)
    data = output.get('data', {})
    width = output.get('metadata', {}).get('image/png', {}).get('width')
    if 'image/png' in data: data['image/png'] = light(data['image/png'], width)
    html = ''.join(data.get('text/html', ''))
    if 'data:image/png' in html:
        html = re.sub(r'(?<=data:image/png;base64,)[\w+/=]+', lambda m: light(m[0]), html)
        data['text/html'] = html.splitlines(keepends=True)

def main():
    for f in sorted((root/'nbs').glob('*.ipynb')):
        nb = read_nb(f)
        for c in nb.cells:
            for o in c.get('outputs', []): lighten(o)
        write_nb(nb, f)

if __name__=='__main__': main()
