"The site: every link and image resolves, and a browser shows it without an error. What needs Chromium is skipped where there is none."
import functools, html, json, re, shutil, subprocess, sys, threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest
from test_packaging import project

root = Path(__file__).resolve().parent.parent
notebooks = sorted(re.sub(r'^\d+[a-z]?_', '', f.stem) for f in (root/'nbs').glob('*.ipynb'))

@pytest.fixture(scope='module')
def site(project):
    "The folder that `make docs` makes, built in a copy of the project"
    r = subprocess.run([sys.executable, '-W', 'ignore', 'tools/docs.py'], cwd=project, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    assert 'broken link' not in r.stdout+r.stderr, r.stdout+r.stderr
    return project/'_docs'

def test_titles_stand_alone():
    "nbdev takes a notebook's first cell for front matter: what else is in it would not be on the site"
    from fastcore.nbio import read_nb
    for f in (root/'nbs').glob('*.ipynb'):
        rest = re.sub(r'^# .*\n+(> .*)?', '', read_nb(f).cells[0].source).strip()
        assert not rest, f'{f.name}: put what follows title and description into a cell of its own'

class Page(HTMLParser):
    "What a page points to, and its anchors"
    def __init__(self, path):
        super().__init__()
        self.links,self.assets,self.ids = [],[],set()
        self.feed(path.read_text())
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id','name') if a.get(k)}
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag=='link' and a.get('href') and a.get('rel')!='canonical': self.assets.append(a['href'])
        if tag in ('img','script','source','iframe') and a.get('src'): self.assets.append(a['src'])

def test_pages(site):
    "One for each notebook, and the changelog"
    for n in [*notebooks, 'changelog', 'contributing']: assert (site/f'{n}.html').exists(), n

def test_links(site):
    pages = {f:Page(f) for f in site.rglob('*.html')}
    bad = []
    for f,p in pages.items():
        for l in p.links+p.assets:
            u = urlsplit(l)
            if u.scheme or l.startswith('//'): continue
            to = (f.parent/unquote(u.path)).resolve() if u.path else f
            if to.is_dir(): to = to/'index.html'
            if not to.exists(): bad.append(f'{f.name}: {l}')
            elif u.fragment and to in pages and unquote(u.fragment) not in pages[to].ids: bad.append(f'{f.name}: no anchor for {l}')
    assert not bad, '\n'.join(bad)

def test_source_links(site):
    "Each to a line of the module"
    links = [l for f in site.glob('*.html') for l in Page(f).links if '/blob/main/fastinit/' in l]
    assert len(links)>200 and all(re.search(r'[.]py#L[1-9]\d*$', l) for l in links), [l for l in links if 'None' in l]

def test_nothing_from_elsewhere(site):
    "No script, style, font or image is fetched from another host: the site works offline"
    for f in site.rglob('*.html'): assert not [a for a in Page(f).assets if urlsplit(a).scheme in ('http','https')], f.name
    for f in site.rglob('*.css'): assert not re.search(r'(@import|url\()\s*["\']?\s*(url\()?https?:', f.read_text()), f.name

def test_own_links_are_relative(site):
    "A link to our own documentation stays on the site"
    text = ''.join(f.read_text() for f in site.glob('*.html'))
    assert 'href="https://fastinit.github.io' not in re.sub(r'<link[^>]*canonical[^>]*>', '', text)

def test_prose_links_to_the_reference(site):
    page = (site/'own_scheme.html').read_text()
    assert 'href="probe.html#probing"' in page
    page = (site/'stats.html').read_text()
    assert re.search(r'href="https://[^"]*stats.py#L\d+"[^>]*>source', page)

def test_search_index(site):
    text = json.dumps(json.loads((site/'search.json').read_text()))
    for n in notebooks: assert f'{n}.html' in text, n

def test_benchmarks_are_current(site):
    "The page shows the figures that are in benchmarks/"
    import pandas as pd
    page = (site/'benchmarks.html').read_text()
    for f in (root/'benchmarks').glob('*.csv'):
        df = pd.read_csv(f)
        if 'model' in df and 'epoch' not in df:
            for m in df.model[:20]: assert f'>{m}</td>' in page, f'{f.name}: run `make prepare`'
        num = df.select_dtypes('float').columns
        if len(num) and 'epoch' not in df: assert f'>{df[num[0]].iloc[0]:.3g}</td>' in page, f'{f.name}: run `make prepare`'

def test_benchmarks_show_their_charts(site):
    "Each with words for who cannot see it and a caption, and the very picture that is in benchmarks/"
    page = (site/'benchmarks.html').read_text()
    figures = re.findall(r'<figure><span[^>]*><img[^>]* src="(benchmarks_files/([^"]*))"[^>]* alt="([^"]*)"></span><figcaption>(.*?)</figcaption>', page)
    assert len(figures)==page.count('<figure')>=35
    for src,name,alt,caption in figures:
        assert (site/src).read_bytes()==(root/'benchmarks'/name).read_bytes()
        assert len(caption)>30 and html.unescape(alt).endswith(caption) and len(alt)>len(caption)+5
    assert 'data:image' not in page

def first_of(*names): return next((p for n in names if (p := shutil.which(n))), None)

@pytest.fixture(scope='module')
def url(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

class Browser:
    "Chromium, its window as wide as asked, and what it complains about"
    def __init__(self, chromium, chromedriver, profile):
        from selenium import webdriver
        o = webdriver.ChromeOptions()
        o.binary_location = chromium
        for a in ('headless','no-sandbox','disable-gpu','disable-quic','no-first-run','disable-background-networking','disable-component-update',
                  'disable-sync','disable-dev-shm-usage',f'user-data-dir={profile}'): o.add_argument(f'--{a}')
        o.set_capability('goog:loggingPrefs', {'browser':'ALL'})
        self.d = webdriver.Chrome(options=o, service=webdriver.ChromeService(chromedriver))
    def open(self, url, width=1300):
        self.d.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=width<600))
        self.d.get(url)
    def prefer(self, mode): self.d.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=mode)]))
    def wait(self, f):
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.d, 60, poll_frequency=.05).until(f)
    def load_pictures(self):
        "Also those that wait until the reader gets there"
        eager = "for (const i of document.images) i.loading = 'eager'; return document.readyState === 'complete' && [...document.images].every(i => i.complete)"
        self.wait(lambda d: d.execute_script(eager)) # each time: the driver may be ahead of the page
    def js(self, code): return self.d.execute_script(f'return {code}')
    def errors(self): return [m['message'] for m in self.d.get_log('browser') if m['level'] in ('SEVERE','WARNING')]
    def too_wide(self): return self.js('document.documentElement.scrollWidth - window.innerWidth')
    def broken_images(self): return self.js('[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)')

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    chromium,driver = first_of('chromium','chromium-browser','google-chrome','chrome'),first_of('chromedriver')
    if not (chromium and driver): pytest.skip('needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)')
    b = Browser(chromium, driver, tmp_path_factory.mktemp('chromium'))
    yield b
    b.d.quit()

def weight(site, page):
    "Bytes that a browser needs to show the page: without the pictures that it loads when the reader gets there"
    text = (site/page).read_text()
    files = re.findall(r'<(?:link[^>]*rel="stylesheet"[^>]*href|script[^>]*src)="([^":?]*)"', text)
    now = [re.search('src="([^"]*)"', i)[1] for i in re.findall('<img[^>]*>', text) if 'loading="lazy"' not in i]
    assert not any(i.startswith('data:') and len(i)>2000 for i in now), f'{page}: a picture within the page'
    return len(text.encode()) + sum((site/f).stat().st_size for f in {*files, *now})

def test_pages_are_light(site):
    for f in site.glob('*.html'): assert weight(site, f.name)<1e6, f'{f.name}: {weight(site, f.name)/1e6:.2f} MB'

look = r"""
document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>'); // no colour on its way to another
const found = {clipped:[], alt:[], contrast:[], small:[], shrunk:[]}, wide = innerWidth >= 1280;
const main = document.querySelector('main'), right = main.getBoundingClientRect().right;
const say = (e) => (e.innerText || e.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 50);
for (const t of main.querySelectorAll('table')) {
  if (!t.offsetWidth) continue;
  let box = t.parentElement;
  while (box !== main && !/auto|scroll/.test(getComputedStyle(box).overflowX)) box = box.parentElement;
  if (t.getBoundingClientRect().right <= right + 1 && box.scrollWidth <= box.clientWidth + 1) continue;
  if (box === main || (wide && !t.matches('.init-report'))) found.clipped.push(say(t));
}
for (const i of document.images) {
  if (!(i.alt || '').trim()) found.alt.push(i.src.slice(-50));
  if (main.contains(i) && i.width && i.width < 0.79*i.getAttribute('width')) found.shrunk.push(`${i.src.slice(-24)} ${i.width}/${i.getAttribute('width')}`);
}
const rgba = (c) => { const m = c.match(/[\d.]+/g).map(Number); return c.startsWith('color(') ? [m[0]*255, m[1]*255, m[2]*255, m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1]; };
const over = (a, b) => [0,1,2].map(k => a[k]*a[3] + b[k]*(1-a[3])).concat(1);
const ground = (e) => { const layers = []; for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3]) { layers.push(c); if (c[3] === 1) break; } }
  return layers.reverse().reduce((b, a) => over(a, b), [255,255,255,1]); };
const light = (c) => c.slice(0,3).map(v => v/255).map(v => v <= 0.03928 ? v/12.92 : ((v+0.055)/1.055)**2.4).reduce((s, v, k) => s + v*[0.2126,0.7152,0.0722][k], 0);
const ratio = (a, b) => { const [l, d] = [light(a), light(b)].sort((x, y) => y-x); return (l+0.05)/(d+0.05); };
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n; n = walk.nextNode();) {
  const e = n.parentElement;
  if (!n.textContent.trim() || !e.checkVisibility({checkOpacity:true, checkVisibilityCSS:true}) || e.closest('script,style,svg,math')) continue;
  const s = getComputedStyle(e), b = ground(e), r = ratio(over(rgba(s.color), b), b);
  if (r < 4.5) found.contrast.push(`${r.toFixed(2)} <${e.tagName.toLowerCase()} class="${e.className}"> ${say(e)}`);
  if (parseFloat(s.fontSize) < 9) found.small.push(`${s.fontSize} ${say(e)}`);
}
for (const i of document.querySelectorAll('input')) {
  const s = getComputedStyle(i, '::placeholder'), b = ground(i), r = ratio(over(rgba(s.color), b), b);
  if (i.offsetWidth && r < 4.5) found.contrast.push(`${r.toFixed(2)} placeholder`);
}
return Object.fromEntries(Object.entries(found).filter(([k, v]) => v.length).map(([k, v]) => [k, [...new Set(v)]]));
"""

@pytest.mark.parametrize('width', [400, 1280, 1920])
def test_every_page(browser, url, width):
    """No console error, no broken image, nothing wider than the window; no table is cut off, every picture has words for who cannot see it,
    text has a contrast of 4.5 at least and 9 px, in light and in dark. A chart's smallest type has 8 pt, 11 px: at 80 % of its size it has 9."""
    faults = {}
    for n in [*notebooks, 'changelog', 'contributing']:
        browser.open(f'{url}/{n}.html', width)
        browser.load_pictures()
        assert not browser.errors() and not browser.broken_images() and browser.js('document.querySelector("h1").innerText'), n
        assert browser.too_wide()<=0, n
        browser.d.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        for mode in ('dark','light'):
            browser.prefer(mode)
            browser.wait(lambda d: browser.js('document.documentElement.classList.contains("quarto-dark")')==(mode=='dark'))
            if (found := browser.d.execute_script(look)): faults[f'{n}, {mode}'] = found
    assert not faults, json.dumps(faults, indent=1, ensure_ascii=False)

def test_home(browser, url):
    browser.open(f'{url}/index.html')
    browser.load_pictures()
    assert 'fastinit' in browser.js('document.title')
    assert browser.js('[...document.images].filter(i => i.naturalWidth>400).length')>=1, 'no chart'
    for section in ('Tutorials','How to','Reference'):
        assert section in browser.js('document.querySelector("#quarto-sidebar").innerText')

def test_no_markup_is_left_as_text(site):
    "Backticks, stars and brackets of Markdown that did not become code, bold or a link"
    for f in site.glob('*.html'):
        text = re.sub(r'<(script|style|pre|code|math)\b.*?</\1>', '', f.read_text(), flags=re.S)
        found = re.search(r'.{0,30}(`|\*\*|\]\().{0,30}', re.sub('<[^>]*>', '', text))
        assert not found, f'{f.name}: {found[0]}'

def test_what_a_page_has(site):
    "Previous and next, source, edit and report links, a footer, a card for who shares it; the sidebar begins with the how-tos"
    for f in site.glob('*.html'):
        text = f.read_text()
        for mark in ('page-navigation','nav-footer','Edit this page','View source','Report an issue','property="og:title"','twitter:card'): assert mark in text, f'{f.name}: {mark}'
    page = (site/'lsuv.html').read_text()
    assert '/blob/main/nbs/11_lsuv.ipynb' in page and '/edit/main/nbs/11_lsuv.ipynb' in page
    sidebar = re.findall('class="menu-text">([^<]*)<', page[page.index('id="quarto-sidebar"'):])
    assert sidebar[:3]==['fastinit','How to','Choose a scheme'] and sidebar.index('probe')>sidebar.index('Internals')
    k = sidebar.index('Reference')
    assert sidebar[k:k+4]==['Reference','Callbacks','Learner.init_report','LSUV']
    reference = (site/'callback.html').read_text()
    assert re.search(r'class(<[^>]*>|\s)*LSUVCallback', reference) and not re.search(r'def(<[^>]*>|\s)*LSUVCallback', reference)
    assert 'a property, <code>str</code>' in (site/'report.html').read_text()
    assert {'Kaiming and other schemes','Charts','Choosing layers','Residual branches'} < set(sidebar[k:sidebar.index('Internals')])

def test_arguments(site):
    "A table of arguments, with types as people write them"
    page = html.unescape(re.sub('<[^>]*>', '', (site/'lsuv.html').read_text()))
    assert 'type | str | Module | callable | list | None' in page and 'collections.abc' not in page

@pytest.mark.parametrize('page,argument', [
    ('callback', 'force bool False Initialize frozen, loaded and pretrained layers too'), ('schemes', 'a float 0.0 Negative slope of a leaky ReLU'),
    ('compare', 'steps int 0 Train this many steps from each; 0: look at one batch only'), ('schemes', '*xb One batch of the model’s inputs')])
def test_keyword_arguments(site, page, argument):
    "Those too that must be given by name, and *xb"
    rows = re.findall('<tr.*?</tr>', (site/f'{page}.html').read_text(), re.S)
    assert argument in [' '.join(html.unescape(re.sub('<[^>]*>', ' ', r)).split()) for r in rows]

def test_no_signature_is_left_as_code(site):
    "One whose arguments have comments is a line and a table"
    for f in site.glob('*.html'):
        for code in re.findall('<pre[^>]*>(.*?)</pre>', f.read_text(), re.S):
            code = html.unescape(re.sub('<[^>]*>', '', code))
            assert not re.match(r'(def|class) \w+\(\n.*, # ', code, re.S), f'{f.name}: {code[:200]}'

@pytest.mark.parametrize('asked,page', [('how do I use it with lightning','plain_pytorch.html'), ('several gpus','several_gpus.html'), ('kaiming','schemes.html')])
def test_search_takes_a_question(browser, url, asked, page):
    from selenium.webdriver.common.by import By
    browser.open(f'{url}/index.html')
    browser.d.find_element(By.CSS_SELECTOR, '#quarto-search input').send_keys(asked)
    found = browser.wait(lambda d: [e.get_attribute('href') for e in d.find_elements(By.CSS_SELECTOR, 'a.search-result')])
    assert any(page in o for o in found[:3]), found[:5]

def test_tutorial(browser, url):
    n = next(re.sub(r'^\d+_', '', f.stem) for f in sorted((root/'nbs').glob('3*.ipynb')))
    browser.open(f'{url}/{n}.html')
    assert browser.js('document.querySelectorAll("pre").length')>=1 and browser.js('document.images.length')>=1

def test_api_page(browser, url):
    browser.open(f'{url}/lsuv.html#lsuv_')
    text = browser.js('document.querySelector("main").innerText')
    assert 'Accept a std within tol of the target' in text and 'def lsuv_(' in text
    browser.wait(lambda d: d.execute_script('return document.getElementById("lsuv_").getBoundingClientRect().top')<300) # the anchor is scrolled to

@pytest.mark.parametrize('width', [1300, 390])
def test_search(browser, url, width):
    "Typed as a reader does; a result leads to its page"
    from selenium.webdriver.common.by import By
    browser.open(f'{url}/index.html', width)
    box = next((e for e in browser.d.find_elements(By.CSS_SELECTOR, 'input[type=search], #quarto-search input, .aa-Input') if e.is_displayed()), None)
    if box is None: # behind the menu of a narrow window
        browser.d.find_element(By.CSS_SELECTOR, '.navbar-toggler').click()
        box = browser.wait(lambda d: next((e for e in d.find_elements(By.CSS_SELECTOR, 'input') if e.is_displayed()), None))
    box.send_keys('GeneralReLU')
    found = browser.wait(lambda d: [e for e in d.find_elements(By.XPATH, '//a[not(ancestor::main)]') if e.is_displayed() and 'acts.html' in (e.get_attribute('href') or '') and 'GeneralReLU' in e.text])
    found[0].click()
    browser.wait(lambda d: 'acts.html' in d.current_url)
    assert not browser.errors()

def test_report_page_opens_offline(browser, tmp_path):
    "`to_html`: one file, drawn without a network; a click on a heading sorts"
    import torch
    from torch import nn
    from fastinit.all import lsuv_
    model = nn.Sequential(nn.Linear(20,50), nn.ReLU(), nn.Linear(50,5))
    f = lsuv_(model, torch.randn(64,20)*3).to_html(tmp_path/'init.html')
    browser.d.execute_cdp_cmd('Network.enable', {})
    browser.d.execute_cdp_cmd('Network.emulateNetworkConditions', dict(offline=True, latency=0, downloadThroughput=0, uploadThroughput=0))
    try:
        for width in (1300, 390):
            browser.open(f'file://{f}', width)
            assert not browser.errors() and browser.js('document.querySelector("svg").getBoundingClientRect().width')>300
        column = 'document.querySelectorAll("table.init-report tbody tr")[0].cells[{i}].innerText'
        i = browser.js('[...document.querySelectorAll("th")].findIndex(h => h.innerText=="std_before")')
        def top(): return float(browser.js(column.format(i=i)))
        click = f'document.querySelectorAll("th")[{i}].click()'
        browser.js(click); a = top()
        browser.js(click); b = top()
        assert a!=b
    finally: browser.d.execute_cdp_cmd('Network.emulateNetworkConditions', dict(offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1))
