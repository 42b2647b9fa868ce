"The report as a container, its copies, its words, and the page that shows it"
import copy, math, pickle, re, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.basics import L, deepcopy
import fastinit.page
from fastinit.all import *
from fastinit.plot import plot_grads, plot_hists, plot_init_stats
from fastinit.report import call_notes, warn_left, with_steps
from fastinit.status import add_status, remedy_for, statuses
from fastinit.stats import Row
from fastinit.watched import Watched
from conftest import outputs

@pytest.fixture(autouse=True)
def _closed():
    plt.close('all')
    yield
    plt.close('all')

def report(names='024', status=None, scheme='', types='Linear', **cols):
    "A made-up report"
    n = len(names)
    df = pd.DataFrame(dict(layer=list(names), type=types, shape=[(8,4)]*n, mean=0., std=np.arange(n)+1., near_zero=0.5, status=status or ['ok']*n))
    return InitReport(df.assign(**cols), scheme)

def watched_report(**cols):
    "Of three steps in which the second layer explodes"
    r = report('ab', **cols)
    r.watched = Watched()
    for std in (1.,1.,99.):
        r.watched.add({n:dict(type='Linear', shape=(8,4), mean=0., std=s, near_zero=0.5, grad_std=0.1) for n,s in (('a',1.),('b',std))}, 2.3)
    return r

STEPS = '2 layers: 2 ok. After 3 steps 1 layer of 2 has exploded (first: b, at step 3)'

# Layers that were left alone

@pytest.mark.parametrize('f', [lsuv_, lambda m, x: init_(m, 'kaiming', x)])
def test_a_frozen_layer_that_explodes_is_said_to(f):
    "Both: that it was left alone, and what it gives; neither of those that give what they should"
    m,x = nn.Sequential(*[nn.Linear(30,30) for _ in range(5)]),torch.randn(64,30)
    for i,std in ((0,1e3), (1,1e-5), (2,100.), (3,1.)):
        nn.init.normal_(m[i].weight, std=std*30**-0.5), nn.init.zeros_(m[i].bias)
        m[i].requires_grad_(i==3)
    with pytest.warns(UserWarning, match='3 frozen'): r = f(m, x)
    assert r.counts=='5 layers: 3 frozen (first: 0), 1 of them exploding, 1 of them vanishing, 2 ok'
    assert r.counts in r.summary and r[['3','4']].counts=='2 layers: 2 ok' and r[['0']].counts=='1 layer: 1 frozen (first: 0), 1 of them exploding'

# Rows

def test_a_container_of_layers():
    r = report()
    assert list(r)==['0','2','4'] and [n for n in r]==['0','2','4'] and len(r)==3
    assert '2' in r and '1' not in r and 'zz' not in r and '' not in r
    assert not report('') and list(report(''))==[]

@pytest.mark.parametrize('layer,name', [('2','2'), (2,'2'), (0,'0'), (1,'2'), (-1,'4'), (-3,'0'), (np.int64(1),'2')])
def test_a_layer_by_name_or_position(layer, name):
    "A number is the layer of that name if there is one, as in an `nn.Sequential`"
    assert report()[layer].name==name and report()[layer]['std']=={'0':1.,'2':2.,'4':3.}[name]

def test_some_layers():
    "A report of their rows, which keeps what the whole one has"
    r = report(scheme='lsuv')
    r.notes.append('a note')
    r.hists = pd.DataFrame({n:[0.,1.] for n in r}, index=[-1.,1.])
    for some,names in ((slice(2),['0','2']), (slice(-1,None),['4']), (['4','0'],['4','0']), ([1],['2']), ([],[])):
        part = r[some]
        assert list(part)==names==list(part.hists) and (part.scheme, part.notes)==('lsuv',['a note']) and list(part.df.index)==list(range(len(names)))
    assert list(r)==['0','2','4']==list(r.hists)
    with pytest.raises(KeyError, match="no layer '7'"): r[['0','7']]

@pytest.mark.parametrize('layer,said', [
    ('layers.1.conv1', 'near: layers.1.conv'), ('zzz', '5 in all (stem, layers.0.conv, layers.1.conv, …)'), (7, '5 in all (stem, layers.0.conv, layers.1.conv, …)'),
    (None, '5 in all (stem, layers.0.conv, layers.1.conv, …)')])
def test_no_such_layer(layer, said):
    "What is near, if anything is; else how many there are"
    with pytest.raises(KeyError) as e: report(['stem','layers.0.conv','layers.1.conv','norm','head'])[layer]
    assert e.value.args[0].startswith(f"the report has no layer '{layer}'; {said}") and said.startswith('5')==e.value.args[0].endswith(said)

@pytest.mark.parametrize('types,names', [('Linear',['0']), (nn.Linear,['0']), (['Linear'],['0']), ([nn.Linear,'ReLU'],['0','2']), ((nn.Conv2d,),['4']), ('linear',['0']), (['conv2D','Linear','GRU'],['0','4']), ([],[])])
def test_layers_of_a_type(types, names):
    "By name or as `layers=` takes them, one or several"
    assert list(report(types=['Linear','ReLU','Conv2d']).only(types))==names

@pytest.mark.parametrize('types,said', [('Lin','lin'), (nn.Module,'module'), (['GRU','lstm'],'gru or lstm'), (0,'0')])
def test_no_layer_of_a_type(types, said):
    "What there is, in the place of an empty report"
    with pytest.raises(ValueError) as e: report(types=['Linear','ReLU','Linear']).only(types)
    assert str(e.value)==f'no layer is of type {said}; there are Linear, ReLU'
    with pytest.raises(ValueError, match='; there are Linear$'): report().mark({'9':'not called'}).only(types) # whose type nobody saw
    with pytest.raises(ValueError, match='; there are $'): report('').mark({'9':'not called'}).only(types)

def test_several_layers_in_any_container():
    "A Series, array, index, tuple or generator of names; a mask, of which a missing value is no"
    r = report()
    for some in (L('0','4'), ('0','4'), (n for n in '04'), np.array(['0','4']), pd.Index(['0','4']), r.df.layer[r.df['std']!=2], {'0':1,'4':1}.keys(),
                 r.df['std']!=2, (r.df['std']!=2).to_numpy(), pd.array([True,None,True], dtype='boolean'), np.array([0,-1])):
        assert list(r[some])==['0','4'], some
    assert list(r['0','4'])==['0','4'] and list(r[r.df['std']>9])==[]
    with pytest.raises(KeyError, match="no layer 'True'"): r[True]
    with pytest.raises(KeyError, match='no layer .*Linear'): r[nn.Sequential(nn.Linear(2,2))]

def test_no_layers():
    r = report(scheme='lsuv')[[]]
    assert r.counts==r.summary=='0 layers' and repr(r)==str(r)=='lsuv: 0 layers' and report('0').counts=='1 layer: 1 ok'
    r.plot()

COPIES = dict(copy=copy.copy, deepcopy=deepcopy, pickle=lambda r: pickle.loads(pickle.dumps(r)), only=lambda r: r.only('Linear'), some=lambda r: r[:])

@pytest.mark.parametrize('how', COPIES)
def test_a_copy_has_what_it_says_for_itself(how):
    r = report().mark({'0':'frozen'})
    other = COPIES[how](r)
    other.notes.append('of the copy')
    other.df['std'] = 7.
    other.mark({'2':'shared'})
    assert r.notes==[] and r.left=={'0':'frozen'} and r.df.status.tolist()==['frozen','ok','ok'] and r.df['std'].tolist()==[1.,2.,3.]
    assert other.notes==['of the copy'] and other.left=={'0':'frozen','2':'shared'} and other.df.status.tolist()==['frozen','shared','ok']

# Words

def test_words_for_one_and_for_many():
    "No remedy speaks of several layers where it may be one"
    r = report('0', ['frozen'])
    assert r.advice=='1 frozen (0): weights kept; to initialize all the same, unfreeze, or `force=True`'
    assert report('02', ['loaded']*2).advice=='2 loaded (0, 2): weights kept; `force=True` initializes all the same'
    rows = [dict(type=t, **did) for t in ('Linear','BatchNorm2d','Embedding','LayerScale') for did in ({}, dict(scale=np.nan), dict(scale=2.), dict(scale=2., std_after=1.))]
    texts = {remedy_for(s, row, scheme, at) for s in statuses for row in rows for scheme in ('','kaiming') for at in ('layer','activation')}
    for o in texts: assert not re.search(r'\b(they|them|their)\b', o), o
    assert len(texts)==21

def test_where_all_weights_are_zero():
    "Hardly by design; a layer that is not, and one more branch that is, leave it at that"
    m = nn.Sequential(nn.Linear(8,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8,8), nn.Linear(8,2))
    for p in (p for o in m if isinstance(o, nn.Linear) for p in o.parameters()): nn.init.zeros_(p)
    x,todo = torch.randn(16,8),'all weights are 0: call `reset_parameters()` of each layer, then initialize'
    r = init_stats(m, x)
    assert r.df.status.tolist()==['all zero']*4 and r.advice==f'4 all zero (0, 1, 3, …): {todo}'
    assert texts_of(r.plot()[1])==['as it is','zero by design']
    nn.init.ones_(m[0].weight)
    assert init_stats(m, x).df.status.tolist()[2:]==['zero']*2 and todo not in init_stats(m, x).advice
    head = nn.Sequential(nn.Embedding(9,4), nn.Linear(4,2))
    for p in head[1].parameters(): nn.init.zeros_(p)
    assert init_stats(head, torch.arange(9)).df.status.tolist()==['ok','zero']

def texts_of(ax): return [t.get_text() for t in ax.figure.legends[0].get_texts()]

def test_what_only_training_calls():
    "No batch reaches it in a pass in evaluation mode"
    assert 'what only training calls' in report('0').mark({'aux':'not called'}).advice

def test_statuses_are_called_by_name():
    assert [k for k,s in statuses.items() if s.words!=k]==['zero'] and statuses['zero'].words=='zero by design'

@pytest.mark.parametrize('std,word', [(0.101,'ok'), (0.099,'vanishing'), (9.9,'ok'), (10.1,'exploding')])
def test_a_factor_of_ten(std, word):
    row = Row('a', 'Linear', (8,4), 0., std)
    add_status([row], set())
    assert row.status==word

def test_remedies_by_what_the_layer_is():
    "Those of one status have a line for each thing to do"
    r = report('0123', ['vanishing']*4, types=['LayerScale','Linear','LayerNorm','Linear'], scheme='kaiming')
    assert [l.split(':')[0] for l in r.advice.splitlines()]==['2 vanishing (1, 3)','1 vanishing (2)','1 vanishing (0)'] # what needs nothing last
    assert [ns for ns in r.remedies('vanishing').values()]==[['0'],['1','3'],['2']] and r.remedies('ok')=={}==r.remedies('typo')
    assert report('0', ['exploding'], scale=2.).remedies('exploding').keys()=={remedy_for('off target', {})} # LSUV did scale it

@pytest.mark.parametrize('kind,status,word', [('LayerScale','vanishing','by design'), ('Affine','vanishing','by design'), ('Affine','exploding','initialize with LSUV'),
    ('ScaledStdConv2d','vanishing','initialize with LSUV'), ('NormedLinear','vanishing','initialize with LSUV'), ('BatchNorm2d','exploding','a normalization gives'),
    ('LayerNorm','vanishing','a normalization gives'), ('BatchNormAct2d','vanishing','a normalization gives'), ('InstanceNorm1d','vanishing','a normalization gives'), ('Scale2d','vanishing','by design')])
def test_remedies_by_type(kind, status, word):
    "A convolution whose weight is scaled is none that needs nothing, and what explodes does need something"
    assert word in remedy_for(status, dict(type=kind))

@pytest.mark.parametrize('n,last', [(3,None), (4,'and so did 1 other layer'), (5,'and so did 2 other layers')])
def test_layers_that_give_something_else_in_each_call(n, last):
    rows = [Row(str(i), 'Linear', (8,4), 0., 1., calls=2, lowest=1., highest=3.) for i in range(n)]
    assert call_notes(rows)[:3]==[f'{i} gave a std from 1 to 3 in 2 calls' for i in range(3)] and call_notes(rows)[3:]==[last]*(last is not None)

def test_what_the_steps_made_is_in_every_form(tmp_path):
    r = watched_report(scheme='lsuv')
    assert r.summary==STEPS==with_steps(r, r.counts) and with_steps(report(), 'text')=='text'
    assert repr(r)==f'lsuv: {STEPS}'==str(r).splitlines()[0]
    for page in (r._repr_html_(), r.to_html(tmp_path/'a.html').read_text()): assert f'<p><b>lsuv</b>: {STEPS}</p>' in page
    bad = watched_report(status=['ok','vanishing'])
    assert bad.summary==(f"{bad.counts}. Vanishing: {statuses['vanishing'].remedy}. After 3 steps 1 layer of 2 has exploded (first: b, at step 3)")
    assert str(bad).splitlines()[0].endswith('at step 3)') and str(bad).splitlines()[1]==bad.advice

# The page

ALTS = {k:f'Chart of the report, layer by layer: {v}' for k,v in dict(stats='mean of the output, std of the output', hists='value of the output (outliers at the ends), share of the values (log10)',
    grads='std of the gradient (log scale)', steps='loss, std of the output ÷ target, std of the gradient ÷ median of step 1').items()}

def whole():
    "A report that has every chart"
    r = watched_report(grad_std=[1.,2.])
    r.hists = pd.DataFrame({'a':[0.,1.], 'b':[1.,0.]}, index=[-1.,1.])
    return r

@pytest.fixture
def unsaved(monkeypatch):
    "Which charts a page has is told without their pictures"
    monkeypatch.setattr(fastinit.page, '_saved', lambda fig, **kw: plt.close(fig) or b'')

def charts(r): return [k for alt in re.findall('<img[^>]* alt="(.*?)"', r._repr_html_()) for k,v in ALTS.items() if v==alt]

def test_a_page_with_every_chart(tmp_path):
    page = whole().to_html(tmp_path/'a.html').read_text()
    assert re.findall('<svg role="img" aria-label="(.*?)"', page)==list(ALTS.values()) and not plt.get_fignums()
    ids = re.findall(' id="(.*?)"', page)
    assert len(ids)==len(set(ids)) and not re.search('(src|href)="(?!#|data:)', page)

def test_which_charts_there_are(unsaved):
    assert charts(whole())==list(ALTS) and charts(watched_report())==['stats','steps'] and charts(report())==['stats'] and not plt.get_fignums()
    r = report()
    r.watched = Watched() # of no step yet, then of one in which no layer was called
    assert charts(r)==['stats']
    r.watched.add({}, 1., names=[])
    assert charts(r)==['stats']

@pytest.mark.parametrize('draw,left', [
    (lambda r: r.plot(), ['hists','grads','steps']), (lambda r: r.plot_steps(), ['stats','hists','grads']), (plot_hists, ['stats','grads','steps']),
    (plot_grads, ['stats','hists','steps']), (lambda r: (r.plot(), plot_hists(r), plot_grads(r), r.plot_steps()), []), (lambda r: (r.plot_steps(), r.plot()), ['hists','grads']),
    (lambda r: r.plot(zoom=0.2), ['hists','grads','steps']), (lambda r: r.plot(axs=plt.figure(layout='constrained').subfigures(1,2)[0].subplots(1,2)), ['hists','grads','steps']),
    (lambda r: plot_init_stats({'this':r, 'other':report('ab', std=[3.,4.])}), ['hists','grads','steps']), (lambda r: report('ab', std=[3.,4.]).plot(), list(ALTS)),
    (lambda r: plot_hists(1-r.hists), list(ALTS)),
    (lambda r: plt.plot([1,2]), list(ALTS)), (lambda r: plt.figure(), list(ALTS))])
def test_only_the_open_chart_is_left_out(draw, left, unsaved):
    "Whoever drew it; the figures that were open stay open"
    r = whole()
    draw(r)
    figs = plt.get_fignums()
    assert charts(r)==left and plt.get_fignums()==figs
    plt.close('all')
    assert charts(r)==list(ALTS)

def test_another_figure_of_that_number(unsaved):
    r = report()
    r.plot()
    plt.close(r.fig)
    assert plt.figure().number==r.fig.number and charts(r)==['stats']

def test_a_reason_hides_no_nan_and_no_bias():
    "What is left alone keeps the status of what was measured where the reason says nothing of it"
    m,x = nn.Sequential(nn.Linear(10,20), nn.ReLU(), nn.Linear(20,3)),torch.randn(50,10)
    nn.init.zeros_(m[2].weight)
    m[2].bias.data = torch.tensor([2.,3.,4.])
    r = lsuv_(m, x)
    assert r['2'].status=='ok' and r.left=={'2':'zero'} and r['2']['std']==pytest.approx(0.82, rel=0.01)
    m[2].bias.data.fill_(2)
    assert lsuv_(m, x)['2'].status=='zero'
    m[0].requires_grad_(False).weight.data[0,0] = math.nan
    r = init_(m, 'kaiming', x)
    assert r['0'].status=='not finite' and r.left['0']=='frozen' and 'not finite (first: 0)' in r.summary

def test_the_word_for_a_layer():
    "Ten times the target, and a tenth, are well; a constant is by design where the weight is 0, and after it only what is 0 itself"
    def words(*rows, zero=(), target=1.):
        rows = [Row(str(i), 'Linear', (2,4), mean, std, target=own) for i,(mean,std,*own) in enumerate(rows) for own in [own[0] if own else None]]
        add_status(rows, set(zero), target)
        return [r.status for r in rows]
    assert words((0.,10.), (0.,10.01), (0.,0.1), (0.,0.0999))==['ok','exploding','ok','vanishing']
    assert words((0.,6.), (0.,6.,0.5), (0.,0.3,0.), target=2.)==['ok','exploding','exploding'] # one of its own, 0 too
    assert words((0.,0.), (0.,0.), (3.,0.), (0.,0.), zero='0')==['zero','zero','dead','dead']
    assert words((3.,0.), (0.,1.), (math.nan,0.), zero='012')==['zero','ok','not finite']

def test_what_is_said_of_what_is_left_alone():
    "Each reason alone: how to initialize all the same, or what to do before"
    for why,more in (('frozen','force=True'), ('loaded','force=True'), ('pretrained','force=True'), ('all zero','call `reset_parameters'), ('not called',None), ('not affine',None)):
        with pytest.warns(UserWarning, match=rf'^left alone: 1 {why} \(0\)') as w: warn_left({'0':why})
        text = str(w[0].message)
        assert [o for o in ('force=True','call `reset_parameters') if o in text]==[more]*(more is not None), text
        if more=='force=True': assert more in remedy_for(why, dict(type='Linear'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warn_left({'0':'zero', '1':'tied'})

def test_types_that_end_so_and_words_that_nobody_knows():
    "An embedding is a layer of that name, not one that has it at its end; of a word that nobody knows nothing is said"
    assert 'embedding' in remedy_for('vanishing', dict(type='EmbeddingBag')) and 'embedding' not in remedy_for('vanishing', dict(type='PatchEmbedding'))
    assert remedy_for('strange', dict(type='Linear'))==''

def test_columns_of_the_table_in_words():
    "In an order of their own, the status last"
    header = str(lsuv_(nn.Sequential(nn.Linear(8,8), nn.Linear(8,2)), torch.randn(16,8))).splitlines()[1]
    assert header.split()==['layer','type','shape','mean','std','std_before','scale','status']

# A network that does not see its input

def deep(n=20, d=64, act=nn.Sigmoid): return nn.Sequential(*[nn.Sequential(nn.Linear(d,d), act()) for _ in range(n)])
def blind(r):
    "The layer from which on the items are said to be alike, or None"
    return next((m[1] for o in r.notes if (m := re.match(r'from (\S+) on, the output hardly differs between the items of the batch', o))), None)

def true_spread(model, xb, name):
    "The std from item to item over that of all values of a layer, from all of them in float64"
    seen = outputs(model, nn.Linear, xb)[name]
    return (seen.var(0).mean()/seen.var()).sqrt().item()

@pytest.mark.parametrize('d', [48, 256])
def test_where_the_items_become_alike(d):
    "The first layer at which less than a millionth is left of what an item has of its own; a sample tells it within a factor of 2"
    m,x = deep(d=d),torch.randn(64,d)
    for f in (init_stats, lsuv_):
        first = blind(r := f(m, x))
        before = f'{int(first[:-2])-1}.0'
        assert true_spread(m, x, first)<2e-6 and true_spread(m, x, before)>5e-7 and len(r.notes)==1
    assert (r.df.status=='ok').all() # no word tells it
    r = lsuv_(m, x, center='channel')
    assert r.notes==[] and true_spread(m, x, '19.0')>0.9 # the remedy works

@pytest.mark.parametrize('n,act', [(5, nn.Sigmoid), (20, nn.Tanh), (8, nn.ReLU)])
def test_items_that_are_not_alike(n, act):
    m,x = deep(n, act=act),torch.randn(64,64)
    assert blind(init_stats(m, x)) is None and blind(lsuv_(m, x)) is None

class Heads(nn.Module):
    "A deep part whose items are alike, and what comes after it"
    def __init__(self, then): super().__init__(); self.body,self.head,self.then = deep(),nn.Linear(64,64),then
    def forward(self, x): return self.then(self, x, self.body(x))

def test_alike_up_to_the_end():
    "A branch that gives the same for all is no matter where another goes on; what has no items, or too few values, says nothing"
    x = torch.randn(32,64)
    assert blind(init_stats(Heads(lambda m, x, o: m.head(o)), x))
    assert blind(init_stats(Heads(lambda m, x, o: m.head(x+o)), x)) is None
    assert blind(init_stats(Heads(lambda m, x, o: m.head(x[:5])), x)) # the last that has the items is the body's
    assert blind(init_stats(nn.Sequential(deep(), nn.Linear(64,1)), x)) # likewise
    assert blind(init_stats(nn.Sequential(nn.Linear(64,7), deep(20, 7)), x)) is None

def test_silent_branches_let_the_input_in_later():
    "The sum is the same for all items as long as the branch is 0, by design"
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token,self.branch,self.head = nn.Parameter(torch.randn(64)),nn.Linear(64,64),nn.Linear(64,64)
        def forward(self, x): return self.head(self.token + self.branch(x) + 1e-9*x)
    m,x = Token(),torch.randn(32,64)
    with torch.no_grad(): m.branch.weight.mul_(1e-8); m.branch.bias.zero_()
    assert blind(init_stats(m, x))=='head'
    with torch.no_grad(): m.branch.weight.zero_()
    assert init_stats(m, x)['branch'].status=='zero' and blind(init_stats(m, x)) is None

@pytest.mark.parametrize('x', [torch.ones(32,64), torch.ones(1,64).expand(32,-1), torch.randn(3,64), torch.randn(1,64), torch.randn(64)], ids=['ones','expanded','3','1','no batch'])
def test_inputs_that_tell_nothing(x): assert blind(init_stats(deep(), x)) is None

def test_inputs_that_are_nearly_alike():
    "Relative to how alike they were before"
    x,m = torch.randn(1,64) + 1e-7*torch.randn(32,64),deep(2, act=nn.Tanh)
    assert true_spread(m.double(), x.double(), '1.0')<1e-6 and blind(init_stats(m, x.double())) is None

def test_tokens_images_and_16_bits():
    words = nn.Sequential(nn.Embedding(50,64), deep())
    assert blind(init_stats(words, torch.randint(0, 50, (32,5)))) and blind(init_stats(words, torch.full((32,5), 3))) is None
    conv = nn.Sequential(*[nn.Sequential(nn.Conv2d(4,4,3,padding=1), nn.Sigmoid()) for _ in range(20)])
    for x in (torch.randn(8,4,9,9), torch.randn(8,4,9,9).to(memory_format=torch.channels_last)): assert blind(init_stats(conv, x))
    assert blind(init_stats(deep().bfloat16(), torch.randn(32,64).bfloat16()))
