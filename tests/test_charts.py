"Every part of a chart says what the table says: lines, guides, marks, scales, legends; and the page what the report says"
import html, math, pickle, re
import itertools, matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from matplotlib.colors import to_hex, to_rgb, to_rgba
from PIL import Image
import fastinit.page
from fastinit.plot import few_colors, plot_depth, plot_grads, plot_hists, plot_init_stats, plot_lr_range, plot_metrics, plot_side_by_side, save_png, scheme_colors, thinned
from fastinit.looks import as_label, axes_or_new, draw_line, legend_below, whole_numbers
from fastinit.report import InitReport
from fastinit.status import statuses

@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close('all')

def report(std, mean=None, status=None, scheme='', target=1., names=None, **cols):
    "A made-up report"
    n = len(std)
    df = pd.DataFrame(dict(layer=names or [str(i) for i in range(n)], type='Linear', shape=[(8,4)]*n, mean=mean or [0.]*n, std=std, near_zero=0.5,
                           status=status or ['ok']*n))
    return InitReport(df.assign(**cols), scheme, target)

def lines(ax): return {o.get_label():o for o in ax.get_lines() if not o.get_label().startswith('_')}
def ys(line): return np.asarray(line.get_ydata(), dtype=float)
def marks(ax, kind): return [o for o in ax.get_lines() if o.get_marker()==kind and o.get_linestyle()=='None']
def texts(legend): return [o.get_text() for o in legend.get_texts()]
def guides(ax): return sorted(float(o.get_ydata()[0]) for o in ax.get_lines() if o.get_linestyle()=='--' and len(o.get_xdata())==2 and list(o.get_xdata())==[0,1])

def test_colors():
    names = [*'abcdefghij','lsuv','kaiming']
    c = scheme_colors(names)
    assert list(c)==names and c['lsuv']==scheme_colors(['lsuv'])['lsuv']!=c['kaiming']
    assert len(set(scheme_colors([*'abc','lsuv','kaiming']).values()))==5

MACHADO = dict(all=np.eye(3), deuteranopia=np.array([[0.367322,0.860646,-0.227968], [0.280085,0.672501,0.047413], [-0.011820,0.042940,0.968881]]),
               protanopia=np.array([[0.152286,1.052583,-0.204868], [0.114503,0.786281,0.099216], [-0.003882,-0.048116,1.051998]]))
SRGB = np.array([[.4124564,.3575761,.1804375], [.2126729,.7151522,.0721750], [.0193339,.1191920,.9503041]])/np.array([[.95047],[1],[1.08883]])

def lab(color, sight):
    "CIE L*a*b* of a colour, as seen with a `sight` (Machado and others, 2009)"
    c = np.array(to_rgb(color))
    xyz = SRGB @ np.clip(MACHADO[sight] @ np.where(c<=.04045, c/12.92, ((c+.055)/1.055)**2.4), 0, 1)
    f = np.where(xyz>.008856, np.cbrt(xyz), 7.787*xyz+16/116)
    return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])

@pytest.mark.parametrize('sight', MACHADO)
def test_colour_blind_people_can_tell_them_apart(sight):
    "Names of one's own from the schemes and from each other: a distance of 17 at least, where 2 can just be seen"
    c = scheme_colors(['default','kaiming','lsuv','normal','xavier','orthogonal',*(f'mine {i}' for i in range(7))])
    near = min((float(np.linalg.norm(lab(c[a], sight)-lab(c[b], sight))),a,b) for a,b in itertools.combinations(c, 2))
    assert near[0]>17, near

def test_lines_and_guides():
    a,b = report([1.,2.,3.], [0.1,0.2,0.3], scheme='kaiming'),report([1.,1.,1.], [0.,0.,0.], scheme='lsuv', target=0.5)
    mean,std = plot_init_stats({'kaiming':a, 'lsuv':b})
    assert guides(mean)==[0.] and guides(std)==[0.5, 1.]
    assert list(ys(lines(std)['kaiming']))==[1.,2.,3.] and list(ys(lines(mean)['kaiming']))==[0.1,0.2,0.3]
    assert list(lines(std)['kaiming'].get_xdata())==[0,1,2]
    assert std.get_yscale()=='linear' and std.get_ylim()[0]==0 and mean.get_yscale()=='linear'
    assert std.get_ylabel()=='std of the output' and mean.get_ylabel()=='mean of the output'
    assert texts(std.figure.legends[0])==['kaiming','lsuv']
    for k,o in lines(std).items(): assert to_hex(o.get_color())==scheme_colors(['kaiming','lsuv'])[k].lower()
    assert [t.get_text() for t in std.get_xticklabels()]==['0','1','2'] and std.get_xlim()==(-0.5, 2.5)

@pytest.mark.parametrize('ratio,scale', [(90., 'linear'), (110., 'log')])
def test_log_over_two_decades(ratio, scale):
    "Of what can be drawn there: zeros and what is not finite do not count"
    axs = plot_init_stats(report([1., ratio, 0., math.inf], status=['ok','ok','zero','not finite']))
    assert axs[1].get_yscale()==scale and ('log scale' in axs[1].get_ylabel())==(scale=='log')

def test_means_get_a_log_scale_with_the_stds():
    axs = plot_init_stats(report([1.,1e4], [0.,-1e4]))
    assert axs[0].get_yscale()=='symlog' and 'log scale' in axs[0].get_ylabel()
    assert plot_init_stats(report([1.,1e4], [0.,0.5]))[0].get_yscale()=='linear'
    assert plot_init_stats(report([1.,1e4], [0.,-8.]))[0].get_yscale()=='linear' # a log scale would have two marks

def test_zoom():
    axs = plot_init_stats(report([1.,1e4], [0.,1e3]), zoom=0.25)
    assert axs[0].get_ylim()==(-0.25,0.25) and axs[1].get_ylim()==(0,1.25) and axs[1].get_yscale()=='linear'
    axs = plot_init_stats({'a':report([3.,3.], target=3.), 'b':report([1.,1.])}, zoom=0.5)
    assert axs[1].get_ylim()==(0,4.5) and axs[0].get_ylim()==(-1.5,1.5) # of the largest target, which is then in the panel
    for zoom in (0, -1, math.nan):
        with pytest.raises(ValueError, match='must be above 0'): plot_init_stats(report([1.]), zoom=zoom)

@pytest.mark.parametrize('log', [False, True])
def test_marks(log):
    "Open circles where the output is 0 by design, crosses where it is not finite; the line has a gap at both"
    big = 1e4 if log else 1.
    r = report([1., 0., math.inf, big], [0.,0.,math.nan,0.], ['ok','zero','not finite','ok'])
    mean,std = plot_init_stats(r)
    for ax in (mean,std):
        (line,) = lines(ax).values()
        assert list(np.isnan(ys(line)))==[False,True,True,False]
        zero,bad = marks(ax, 'o'),marks(ax, 'x')
        assert [list(o.get_xdata()) for o in zero]==[[1]] and [list(o.get_xdata()) for o in bad]==[[2]]
        assert list(ys(zero[0]))==[0] and list(ys(bad[0]))==[1] and to_rgba(zero[0].get_markerfacecolor())==to_rgba('white')
        assert bad[0].get_transform()==ax.get_xaxis_transform()
        assert (zero[0].get_transform()==ax.get_xaxis_transform())==(ax is std)==(not zero[0].get_clip_on()) # where 0 is the frame, or has no place
    assert texts(std.figure.legends[0])==['as it is','zero by design','not finite']
    assert texts(plot_init_stats(report([1.,2.]))[1].figure.legends[0])==['as it is'] # none occurs

def test_uncalled_layers_are_not_drawn():
    r = report([1.,2.]).mark({'7':'not called'})
    axs = plot_init_stats(r)
    assert len(r)==3 and len(ys(lines(axs[1])['as it is']))==2 and [t.get_text() for t in axs[0].get_xticklabels()]==['0','1']

def test_names_are_thinned_and_shortened():
    names = [f'layer_{i}' for i in range(60)]
    names[0] = 'encoder.layers.0.self_attention.out_proj'
    ax = plot_init_stats(report([1.]*60, names=names))[0]
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert list(ax.get_xticks())==list(range(0, 60, 3)) and labels[:2]==['encoder.la…on.out_proj','layer_3']
    assert len(labels[0])==22 and '(1 in 3 named)' in ax.get_xlabel()

def test_short_names_tell_layers_apart():
    "What all begin with goes first, then a middle; the layer's number stays"
    parts = 'attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm intermediate.dense output.dense output.LayerNorm'.split()
    bert = [f'bert.encoder.layer.{i}.{o}' for i in range(12) for o in parts]
    short = thinned(bert, 100)[1]
    assert short[0]=='0.attention.self.query' and len(set(short))==96 and max(map(len, short))==22
    assert all(s.split('.')[0]==str(i//8) for i,s in enumerate(short))
    more = thinned(['bert.embeddings.word_embeddings',*bert], 24)[1] # with less in common
    assert len(set(more))==len(more) and more[-1].startswith('encoder.layer.11.')
    vit = [f'encoder.layers.encoder_layer_{i}.{o}' for i in range(12) for o in ('ln_1','self_attention.out_proj','ln_2','mlp.0','mlp.3')]
    assert len(set(thinned(vit, 60)[1]))==60 and max(map(len, thinned(vit, 60)[1]))==22
    assert thinned(['a.b.'+'c'*30], 24)[1]==['a.b.cccccc…'+'c'*11] and thinned([], 24)[1]==[]
    assert thinned(['a.b','a.c'], 24)[1]==['a.b','a.c'] # short enough

def test_every_line_stands_over_its_own_layers():
    "The names of all reports, in order; each line at the places of its own"
    ax = plot_init_stats({'a':report([1.]), 'b':report([1.]*3)})[0]
    assert [t.get_text() for t in ax.get_xticklabels()]==['0','1','2']
    axs = plot_init_stats({'all':report([1.,2.,3.], names=['a','b','c']), 'skip b':report([1.,3.], names=['a','c'])})
    for ax in axs: assert {k:list(o.get_xdata()) for k,o in lines(ax).items()}=={'all':[0,1,2], 'skip b':[0,2]}
    rs = {'some':report([1.,0.,1.,math.inf], status=['ok','zero','ok','not finite'], names=['0','2','4','6'], grad_std=[1.,1.,0.,1.]), 'all':report([1.]*7, grad_std=1.)}
    for ax in (*plot_init_stats(rs), plot_grads(rs)):
        assert [t.get_text() for t in ax.get_xticklabels()]==list('0123456') and list(lines(ax)['some'].get_xdata())==[0,2,4,6]
    std = plot_init_stats(rs)[1]
    assert [list(o.get_xdata()) for o in marks(std, 'o')+marks(std, 'x')]==[[2],[6]] and [list(o.get_xdata()) for o in marks(plot_grads(rs), 'o')]==[[4]]
    two = plot_init_stats({'one':report([1.,2.,3.], names=['a','m','z']), 'other':report([1.,2.], names=['m','n'])})[0] # n after m
    assert [t.get_text() for t in two.get_xticklabels()]==['a','m','n','z'] and list(lines(two)['other'].get_xdata())==[1,2]

def test_a_dead_layer_on_a_log_scale():
    "A gap in the line and an open triangle on the frame, with an entry in the legend; on a linear scale its point is at 0"
    r = report([1.,300.,0.,2.,0.], status=['ok','exploding','dead','ok','zero'])
    mean,std = plot_init_stats(r)
    (dead,) = marks(std, 'v')
    assert list(dead.get_xdata())==[2] and list(ys(dead))==[0] and dead.get_transform()==std.get_xaxis_transform()
    assert list(np.isnan(ys(lines(std)['as it is'])))==[False,False,True,False,True] and not marks(mean, 'v')
    assert [list(o.get_xdata()) for o in marks(std, 'o')]==[[4]] and texts(std.figure.legends[0])==['as it is','zero by design','dead']
    std = plot_init_stats(report([1.,0.], status=['ok','dead']))[1]
    assert list(ys(lines(std)['as it is']))==[1.,0.] and not marks(std, 'v') and texts(std.figure.legends[0])==['as it is']

def test_marks_of_a_log_scale_around_0_do_not_overlap():
    for means in ([0.,1e20], [1e37,-1e36], [0.,30.,-20.], [-1e4,1.]):
        ax = plot_init_stats(report([1.,1e4,*[1.]*(len(means)-2)], means))[0]
        ax.figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
        assert 3<=len(boxes)<=9 and 0 in ax.get_yticks() and not any(a.overlaps(b) for a,b in zip(boxes, boxes[1:])), means
        assert ax.get_ylim()[0]<min(means) and ax.get_ylim()[1]>1.5*max(means) # with a margin

def test_the_legend_fits():
    "Below, in as many columns as there is room for; of a title of one's own it leaves room"
    six = 'lsuv_uncentered lsuv_orthogonal lsuv_activation lsuv_small_branches lsuv_residual orthogonal'.split()
    sided = plot_side_by_side({'one':results_of(*six), 'two':results_of(*six)}, plot_lr_range)
    for axs in (plot_init_stats({k:report([1.,2.]) for k in six}), plot_init_stats({f'a scheme with a long name, {i}':report([1.]) for i in range(7)}), sided):
        fig = axs[0].figure
        title = fig.suptitle('A title')
        fig.draw_without_rendering()
        box,name = fig.legends[0].get_window_extent(),title.get_window_extent()
        assert box.x0>=0 and box.x1<=fig.bbox.width and box.y0>=0 and not box.overlaps(name) and not box.overlaps(axs[0].get_tightbbox())
    assert plot_init_stats({k:report([1.]) for k in 'abcdef'})[0].figure.legends[0]._ncols==6

def test_given_axes_have_their_own_legend():
    fig,axs = plt.subplots(2, 2)
    for row,k in zip(axs, 'ab'): plot_init_stats({k:report([1.,2.])}, axs=row)
    assert not fig.legends and [texts(row[1].get_legend()) for row in axs]==[['a'],['b']]
    plot_init_stats({'c':report([2.,3.])}, axs=axs[1])
    assert texts(axs[1,1].get_legend())==['b','c'] and len({o.get_color() for o in lines(axs[1,1]).values()})==2

def test_on_a_dark_background():
    "What is black or dark grey elsewhere has the colour of the text"
    with plt.style.context('dark_background'):
        assert scheme_colors(['lsuv_uncentered'])=={'lsuv_uncentered':'#ffffff'} and list(scheme_colors('abcdefgh').values())[-1]=='#ffffff'
        std = plot_init_stats(report([1.,0.,math.inf], status=['ok','zero','not finite']))[1]
        assert {to_hex(o.get_color()) for o in std.figure.legends[0].legend_handles[1:]}=={'#ffffff'}
        assert to_hex(marks(std, 'o')[0].get_markerfacecolor())=='#000000' # open

def test_given_axes():
    fig,axs = plt.subplots(1, 2)
    assert plot_init_stats(report([1.]), axs=axs)[1] is axs[1] and len(plt.get_fignums())==1
    assert tuple(plot_init_stats(report([1.]), figsize=(5,3))[0].figure.get_size_inches())==(5,3)

def test_report_plot_keeps_its_figure_but_not_in_a_file():
    r = report([1.,2.], scheme='lsuv')
    axs = r.plot()
    assert r.fig is axs[0].figure and texts(r.fig.legends[0])==['lsuv']
    again = pickle.loads(pickle.dumps(r))
    assert not hasattr(again, 'fig') and again.df.equals(r.df)

def test_histograms():
    "Low values below, few of them dark, on one scale"
    h = pd.DataFrame({'a':[0.,0.1,0.9], 'b':[1.,0.,0.]}, index=[-2.,0.,2.])
    ax = plot_hists(h)
    (im,) = ax.get_images()
    assert im.origin=='lower' and list(im.get_extent())==[-0.5,1.5,-3.,3.] and im.get_clim()==(-4,0)
    assert np.allclose(im.get_array(), [[-4,0],[-1,-4],[math.log10(0.9),-4]])
    assert [t.get_text() for t in ax.get_xticklabels()]==['a','b'] and ax.get_ylabel()=='value of the output (outliers at the ends)'

def test_gradients():
    r = report([1.]*3, scheme='lsuv', grad_std=[1.,0.,1e-3])
    ax = plot_grads(r)
    line = lines(ax)['lsuv']
    assert ax.get_yscale()=='log' and list(np.isnan(ys(line)))==[False,True,False] and ys(line)[2]==1e-3
    (none,) = marks(ax, 'o')
    assert list(none.get_xdata())==[1] and none.get_transform()==ax.get_xaxis_transform()
    assert texts(ax.get_legend())==['lsuv','lsuv: none']
    both = plot_grads({'a':r, 'without':report([1.])})
    assert set(texts(both.get_legend()))=={'a','a: none'}

def test_depth():
    "Counted from 1; the first layer that is not finite is marked and named"
    r = report([1.,2.,math.inf,math.nan], [0.,0.,0.,math.nan], scheme='normal')
    ax = plot_depth({'normal':r, 'lsuv':report([1.,0.,1.])})
    by = lines(ax)
    assert list(by['normal (not finite from layer 3)'].get_xdata())==[1,2] and list(by['lsuv'].get_xdata())==[1,2,3]
    assert list(np.isnan(ys(by['lsuv'])))==[False,True,False] and ax.get_yscale()=='log' and guides(ax)==[1.]
    assert [o.get_xdata()[0] for o in ax.get_lines() if o.get_linestyle()==':']==[3]
    assert list(lines(plot_depth(report([1.,1.], [0.,math.inf]))).keys())==['as it is (not finite from layer 2)']

def results():
    return pd.DataFrame([dict(scheme=s, lr=lr, seed=k, epoch=e, accuracy=a+0.1*k+0.01*e+lr) for s,a in (('kaiming',.2),('lsuv',.5))
                         for lr in (0.001,0.01) for k in range(3) for e in (1,2)])

def test_metrics():
    res = results().query('lr==0.001')
    ax = plot_metrics(res)
    for k,a in (('kaiming',.2),('lsuv',.5)):
        assert np.allclose(ys(lines(ax)[k]), [a+0.1+0.01*e+0.001 for e in (1,2)]) and list(lines(ax)[k].get_xdata())==[1,2]
    for band,a in zip(ax.collections, (.2,.5)): # from the lowest seed to the highest
        y = band.get_paths()[0].vertices[:,1]
        assert np.allclose([y.min(), y.max()], [a+0.01+0.001, a+0.2+0.02+0.001])
    assert ax.get_xlabel()=='epoch' and ax.get_ylabel()=='accuracy' and texts(ax.get_legend())==['kaiming','lsuv']
    assert plot_metrics(res.rename(columns={'accuracy':'valid_loss'}), 'valid_loss').get_ylabel()=='valid loss'

def test_lr_range():
    "The mean over seeds after the last epoch, a bar from the lowest to the highest, a star at the best rate"
    ax = plot_lr_range(results())
    for (k,a),box in zip((('kaiming',.2),('lsuv',.5)), ax.containers):
        line,_,(bars,) = box
        assert box.get_label()==k and np.allclose(ys(line), [a+0.12+lr for lr in (0.001,0.01)])
        for s,lr in zip(bars.get_segments(), (0.001,0.01)): assert np.allclose(np.asarray(s[:,1], float), [a+0.02+lr, a+0.22+lr])
    stars = [o for o in ax.get_lines() if o.get_marker()=='*']
    assert [round(o.get_xdata()[0], 3) for o in stars]==[0.01,0.01] and np.allclose([ys(o)[0] for o in stars], [.33,.63])
    x = [np.asarray(c[0].get_xdata(), float) for c in ax.containers]
    assert (x[0]<x[1]).all() and np.allclose(x[1]/x[0], 1.03) and np.allclose((x[0]*x[1])**0.5, [0.001,0.01]) and ax.get_xscale()=='log'
    assert [t.get_text() for t in ax.get_xticklabels()]==['0.001','0.01'] and 'after epoch 2' in ax.get_ylabel()

def test_seeds_and_schemes_as_they_come():
    "A bar reaches further on the side of the seed that is further off; schemes stand in the order of the table"
    res = pd.DataFrame([dict(scheme=s, lr=0.01, seed=k, epoch=1, accuracy=a) for s in ('lsuv','kaiming') for k,a in enumerate((0.5,0.6,1.))])
    for ax in (plot_lr_range(res), plot_metrics(res)): assert texts(ax.get_legend())==['lsuv','kaiming']
    (segment,) = plot_lr_range(res).containers[0][2][0].get_segments()
    assert np.allclose(np.asarray(segment[:,1], float), [0.5,1.])

@pytest.mark.parametrize('metric,best', [('valid_loss',0.01), ('error_rate',0.01), ('accuracy',0.1)])
def test_the_best_rate(metric, best):
    "The lowest of a loss or an error, else the highest; none where there is no number"
    df = pd.DataFrame([dict(scheme=k, lr=lr, seed=0, epoch=1, **{metric:v if k=='a' else math.nan}) for k in 'ab' for lr,v in ((1e-3,2.3), (1e-2,.4), (1e-1,9.), (1.,math.nan))])
    (star,) = [o for o in plot_lr_range(df, metric).get_lines() if o.get_marker()=='*']
    assert star.get_xdata()[0]==pytest.approx(best, rel=0.05) and star.get_color()==scheme_colors('ab')['a']

def test_close_rates_can_be_read():
    for rates in ((1e-4,3e-4,1e-3,1.5e-3,2e-3,3e-3,1e-2), (1e-3,3e-3,1e-2,3e-2), (1e-3,)):
        df = pd.DataFrame([dict(scheme='a', lr=lr, seed=0, epoch=1, accuracy=lr) for lr in rates])
        ax = plot_lr_range(df)
        ax.figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.get_xticklabels()]
        assert len(boxes)==len(rates) and not any(a.overlaps(b) for a,b in zip(boxes, boxes[1:]))

def called(ax): return ax.get_xlabel(),ax.get_ylabel()
def results_of(*schemes): return pd.concat([results().query("scheme=='lsuv'").assign(scheme=k) for k in schemes])

def test_what_the_axes_are_called():
    a,b = plot_init_stats(report([1.,2.]))
    assert called(a)==('layer, in order of execution','mean of the output') and called(b)==('layer, in order of execution','std of the output')
    assert called(plot_grads(report([1.], grad_std=[1.])))==('layer, in order of execution','std of the gradient (log scale)')
    assert called(plot_depth(report([1.])))==('depth (layers)','std of the output (log scale)')
    assert called(plot_metrics(results()))==('epoch','accuracy')
    assert called(plot_lr_range(results()))==('peak learning rate (log scale)','accuracy after epoch 2')
    hist = plot_hists(pd.DataFrame({'a':[0.,1.]}, index=[-1.,1.]))
    assert called(hist)==('layer, in order of execution','value of the output (outliers at the ends)')
    assert called(hist.figure.axes[1])==('','share of the values (log10)')

def test_sizes():
    "In inches; a wider one for more layers, but none wider than a page"
    charts = [plot_depth(report([1.])), plot_metrics(results()), plot_lr_range(results())]
    assert {tuple(ax.figure.get_size_inches()) for ax in charts}=={(7,4)}
    def _size(ax): return tuple(ax.figure.get_size_inches().round(6))
    hists = pd.DataFrame({str(i):[0.,1.] for i in range(20)}, index=[-1.,1.])
    assert _size(plot_init_stats(report([1.]*20))[0])==(10.,4.8) and _size(plot_init_stats(report([1.]*40))[0])==(10.5,4.8)
    assert _size(plot_grads(report([1.]*20, grad_std=1.)))==(8.,4.) and _size(plot_hists(hists))==(8.,4.)
    assert tuple(plot_side_by_side({'a':results(), 'b':results(), 'c':results()}, plot_metrics)[0].figure.get_size_inches().round(6))==(9.,7.8)

@pytest.mark.parametrize('n,marker', [(30,'o'), (31,'.')])
def test_points_are_dots_where_there_are_many(n, marker):
    r = report([1.]*n, grad_std=1.)
    assert {lines(ax)['as it is'].get_marker() for ax in (*plot_init_stats(r), plot_grads(r))}=={marker}

def test_limits_of_one_layer():
    assert plot_init_stats(report([1.]))[1].get_xlim()==(-0.5,0.5) and plot_hists(pd.DataFrame({'a':[0.,1.]}, index=[-1.,1.])).get_xlim()==(-0.5,0.5)

def test_lines_that_lie_on_others_are_dashed():
    names = 'lsuv','lsuv_uncentered','lsuv_orthogonal','lsuv_small_branches','batchnorm'
    stats = plot_init_stats({k:report([1.,2.]) for k in names})
    for ax in (*stats, plot_metrics(results_of(*names)), plot_lr_range(results_of(*names))):
        by = lines(ax) or {c.get_label():c[0] for c in ax.containers}
        dashes = [str(by[k]._dash_pattern) for k in names]
        assert by['lsuv'].get_linestyle()=='-' and dashes[0].endswith('None)') and len(set(dashes))==len(names)

def test_a_scheme_has_one_colour_in_all_charts():
    want = scheme_colors(['kaiming','lsuv'])
    def _same(found): assert {k:to_hex(c) for k,c in found.items()}=={k:c.lower() for k,c in want.items()}
    rs = {k:report([1.,2.,math.inf], grad_std=[1.,0.,1.]) for k in want}
    for ax in plot_init_stats(rs): _same({k:o.get_color() for k,o in lines(ax).items() if k in want})
    ax = plot_grads(rs)
    _same({k:o.get_color() for k,o in lines(ax).items() if k in want})
    _same({k.split(':')[0]:o.get_color() for k,o in lines(ax).items() if k not in want})
    ax = plot_depth(rs)
    _same({k.split()[0]:o.get_color() for k,o in lines(ax).items()})
    _same(dict(zip(want, [o.get_color() for o in ax.get_lines() if o.get_linestyle()==':'])))
    ax = plot_metrics(results())
    _same({k:o.get_color() for k,o in lines(ax).items()})
    _same(dict(zip(want, [o.get_facecolor()[0] for o in ax.collections])))
    ax = plot_lr_range(results())
    _same({c.get_label():c[0].get_color() for c in ax.containers})
    _same(dict(zip(want, [o.get_color() for o in ax.get_lines() if o.get_marker()=='*'])))

def test_colours_run_out_late():
    "Those that a known scheme has go to no other; of many more, each has its own, from a ramp"
    names = [f's{i}' for i in range(10)]
    assert len({*scheme_colors(names).values()})==10==len({*scheme_colors(f's{i}' for i in range(10)).values()})
    names = names[:8]
    own = dict(default='#E69F00', kaiming='#0072B2', lsuv='#009E73', normal='#D55E00', xavier='#CC79A7', orthogonal='#56B4E9', lsuv_uncentered='#000000',
               lsuv_orthogonal='#882255', lsuv_activation='#999933', lsuv_small_branches='#332288', lsuv_residual='#AA4499', batchnorm='#888888')
    assert scheme_colors(own)==own and all(scheme_colors([k])=={k:c} for k,c in own.items())
    known = 'kaiming','default','lsuv','xavier','orthogonal','normal','lsuv_uncentered'
    assert {*own.values()} & {*scheme_colors(names).values()}=={'#000000'}
    assert len({*scheme_colors([*known,'a','b']).values()})==len(known)+2
    for k in (*known,'lsuv_orthogonal','lsuv_activation','lsuv_small_branches','lsuv_residual','batchnorm'):
        assert to_hex(scheme_colors([k])[k])!='#000000' or k=='lsuv_uncentered'
    assert len({*scheme_colors([*known,'lsuv_orthogonal','lsuv_activation','lsuv_small_branches','lsuv_residual','batchnorm']).values()})==12

def test_whole_numbers_and_rates_along_x():
    ax = plot_metrics(results())
    assert all(t==int(t) for t in ax.get_xticks())
    assert not len(plot_lr_range(results()).xaxis.get_minorticklocs())

@pytest.mark.parametrize('mean,near', [(1e4,1.), (1e8,100.)])
def test_means_near_zero_on_a_log_scale(mean, near):
    "Linear up to 1, or to a millionth of the largest"
    axis = plot_init_stats(report([1.,1e4], [0.,-mean]))[0].yaxis
    assert axis.get_transform().linthresh==pytest.approx(near, rel=0.3)

def test_nothing_to_draw():
    for f,o,what in [(plot_init_stats, {}, 'InitReport'), (plot_hists, report([1.]), 'histograms'), (plot_grads, report([1.]), 'gradients')]:
        with pytest.raises(ValueError, match=what): f(o)
    for o in ([report([1.])], {'a':report([1.]).df}):
        with pytest.raises(TypeError, match='a dict of them'): plot_init_stats(o)
    with pytest.raises(ValueError, match='two bins'): plot_hists(pd.DataFrame({'a':[1.]}, index=[0.]))
    for f in (plot_metrics, plot_lr_range):
        with pytest.raises(ValueError, match="no column 'auc'; there are scheme, lr, seed, epoch, accuracy"): f(results(), 'auc')

def test_given_axes_of_each_chart():
    for f,o in [(plot_hists, pd.DataFrame({'a':[0.,1.]}, index=[-1.,1.])), (plot_grads, report([1.], grad_std=[1.])), (plot_depth, report([1.])),
                (plot_metrics, results()), (plot_lr_range, results())]:
        ax = plt.subplots()[1]
        assert f(o, ax=ax) is ax and len(plt.get_fignums())==1
        plt.close('all')
        assert tuple(f(o, figsize=(5,3)).figure.get_size_inches())==(5,3)
        plt.close('all')

def test_saved_pictures(tmp_path):
    "A PNG of the size asked for, of 128 colours at most, and each line has its own"
    fig,ax = plt.subplots(figsize=(4,3))
    for i,c in enumerate(scheme_colors('abcdefg').values()): ax.plot([0,1], [i,i], color=c, lw=0.5)
    ax.imshow(np.linspace(0, 1, 400).reshape(20,20), extent=(0,1,0,6), aspect='auto', cmap='viridis')
    save_png(fig, tmp_path/'a.png')
    save_png(fig, tmp_path/'b.png', dpi=50)
    a,b = Image.open(tmp_path/'a.png'),Image.open(tmp_path/'b.png')
    assert a.format=='PNG' and a.mode=='P' and a.size==(480,360) and b.size==(200,150)
    assert 100<len(a.getcolors())<=128 and len(few_colors(a, 16).getcolors())<=16

def test_legends_cover_no_line():
    many = pd.concat([results().query('lr==0.001').assign(scheme=f's{i}') for i in range(6)])
    charts = [plot_metrics(results().query('lr==0.001')), plot_metrics(many), plot_lr_range(results()), plot_depth({'a':report([1.,2.]), 'b':report([3.,4.])}),
              plot_grads(report([1.,1.], grad_std=[1.,2.]))]
    for ax in charts:
        ax.figure.canvas.draw()
        assert ax.get_legend().get_window_extent().x0>ax.get_window_extent().x1

def test_side_by_side():
    panels = plot_side_by_side({'one':results(), 'two':results().query("scheme=='lsuv'"), 'three':results()}, plot_lr_range, size=(3,2), ylim=(0,1))
    fig = panels[0].figure
    assert [o.get_title() for o in panels]==['one','two','three'] and len(fig.axes)==3 and tuple(fig.get_size_inches())==(6,4.6)
    assert [bool(o.get_ylabel()) for o in panels]==[True,False,True] and texts(fig.legends[0])==['kaiming','lsuv']

# The page

NASTY = '<b>&"x"</b>'

def nasty():
    r = report([1.,0.01,math.nan], [0.,0.,math.nan], ['ok','vanishing','not finite'], scheme=NASTY, names=['0',NASTY,'2'])
    r.notes.append(NASTY)
    return r

def test_everything_is_escaped(tmp_path):
    r = nasty()
    for page in (r._repr_html_(), r.to_html(tmp_path/'a.html', title=NASTY).read_text()):
        assert '<b>&"x"' not in page and html.escape(NASTY) in page
    assert f'<title>{html.escape(NASTY)}</title>' in page and f'>{html.escape(NASTY)}</h1>' in page
    text = page[page.index('<p><b>'):page.index('<svg')]
    assert text.count(html.escape(NASTY))>=4 # scheme, counts, note, advice

def test_cells():
    r = report([1.23456,1e-9,math.nan], status=['ok','exploding','not called'], scale=[2.,math.nan,math.nan])
    rows = re.findall('<tr>(.*?)</tr>', r._repr_html_())
    cells = [re.findall('<td style="(.*?)">(.*?)</td>', o) for o in rows[1:]]
    head = re.findall('<th .*?>(.*?)</th>', rows[0])
    assert head==['#','layer','type','shape','mean','std','scale','status']
    assert [o[5][1] for o in cells]==['1.23','1e-09'.replace('e-0','e-'),'nan'] and [o[6][1] for o in cells]==['2','','']
    row = re.findall('<td.*?>(.*?)</td>', report([1.,1.], [0.,math.nan], ['ok','not finite'])._repr_html_())
    assert row.count('nan')==1 # a mean that is not finite shows
    assert [o[7][0].split(';')[0] for o in cells]==['background:#d7f0dd','background:#ffd9b8','background:#fdf3c7']
    assert all('text-align:left' in o[k][0] for o in cells for k in (1,2,7)) and all('text-align:right' in o[k][0] for o in cells for k in (4,5,6))

def test_colour_of_a_status():
    "One that browsers know"
    colors = {k:s.color for k,s in statuses.items()}
    assert all(re.fullmatch('#[0-9a-f]{6}', c) for c in colors.values()), colors

def test_charts_of_what_there_is(tmp_path):
    r = report([1.,2.], grad_std=[1.,2.])
    r.hists = pd.DataFrame({'0':[0.,1.], '1':[1.,0.]}, index=[-1.,1.])
    page = r.to_html(tmp_path/'a.html').read_text()
    assert page.count('<svg')==3 and page.count('<img')==0 and r._repr_html_().count('<img')==3
    assert report([1.])._repr_html_().count('<img')==1 and 'grad_std' not in report([1.])._repr_html_()
    assert re.findall('<th .*?>(.*?)</th>', r._repr_html_())[6]=='grad_std'
    body = re.sub('<(title|style|defs|svg|table|p|h1)[ >].*?</\\1>', '', page, flags=re.S)
    assert not re.sub('<[^>]*>', '', body).strip(), body # no words but those of headings, sentences, charts and tables
    ids = re.findall(' id="(.*?)"', page)
    assert len(ids)==len(set(ids)) # of several charts in one page
    assert {*re.findall(r'(?:href="#|url\(#)(.*?)[")]', page)} <= set(ids)
    assert not plt.get_fignums() # nothing is left open

def test_an_open_chart_is_not_shown_twice():
    r = report([1.])
    axs = r.plot()
    assert '<img' not in r._repr_html_() and plt.get_fignums()
    plt.close(axs[0].figure)
    assert '<img' in r._repr_html_()

def test_page_is_the_same_each_time(tmp_path):
    "To the byte, its chart too"
    def page(name): return report([1.,2.]).to_html(tmp_path/name).read_text()
    assert page('a.html')==page('b.html') and '<svg role=' in page('a.html')

def test_rounding_noise_is_no_signal():
    "After LSUV means of 1e-8 lie on the line at 0, and the line of the stds is not on the frame"
    r = report([1.]*5)
    r.df['mean'] = [1e-8,-2e-8,0.,3e-8,-1e-8]
    mean,std = plot_init_stats(r)
    assert mean.get_ylim()==(-0.1,0.1) and std.get_ylim()==(0,1.25)
    r.df['mean'] = [0.3,-0.2,0.,0.1,0.]
    mean,std = plot_init_stats(r)
    assert 0.3<mean.get_ylim()[1]<0.4 and std.get_ylim()==(0,1.25)

def test_charts_have_words(tmp_path):
    "For those who do not see them: what is on their axes"
    r = report([1.,2.], grad_std=[1.,2.])
    r.hists = pd.DataFrame({'0':[0.,1.], '1':[1.,0.]}, index=[-1.,1.])
    alts = ['Chart of the report, layer by layer: mean of the output, std of the output', 'Chart of the report, layer by layer: value of the output (outliers at the ends), share of the values (log10)',
            'Chart of the report, layer by layer: std of the gradient (log scale)']
    assert re.findall('<img[^>]* alt="(.*?)"', r._repr_html_())==alts
    assert re.findall('<svg role="img" aria-label="(.*?)"', r.to_html(tmp_path/'a.html').read_text())==alts

def test_words_of_the_page(tmp_path):
    "Heading, summary, notes a line each, what to do, the versions; in this order and nothing else"
    r = report([1.,0.01], status=['ok','vanishing'], scheme='kaiming')
    r.notes += ['first\nnote','second']
    page = r.to_html(tmp_path/'a.html').read_text()
    assert '<title>How the network starts</title>' in page and '>How the network starts</h1>' in page and page.startswith('<!doctype html><html lang="en"><head><meta charset="utf-8">')
    advice = ''.join(f'<li>{html.escape(o)}</li>' for o in r.advice.splitlines())
    text = f'<p><b>kaiming</b>: {html.escape(r.counts)}<br/>first<br/>note<br/>second</p><ul>{advice}</ul>'
    assert f'</h1>{text}<svg' in page and r._repr_html_().startswith(text+'<img') and advice
    from importlib.metadata import version
    import fastinit
    assert page.endswith(f'>fastinit {fastinit.__version__} · fastai {version("fastai")} · torch {version("torch")}</p></body></html>')
    assert fastinit.page._text(report([1.]))==f'<p>{report([1.]).counts}</p>'

@pytest.mark.parametrize('width,ncols', [(7.2,5), (4.2,3), (1.,1), (20.,6)])
def test_columns_of_a_legend(width, ncols):
    "As many as there is room for, six at most; a name of 8 letters takes 1.4 inches"
    fig,ax = plt.subplots(figsize=(width,3), layout='constrained')
    legend_below(fig, [ax.plot([], label=f'scheme {i}')[0] for i in range(8)])
    assert fig.legends[0]._ncols==ncols
    plt.close(fig)

def test_names_up_to_22_letters_stay_whole(): assert thinned(['abc.'+'d'*18, 'abc.e'], 9)[1]==['abc.'+'d'*18, 'abc.e'] and thinned(['abc.'+'d'*19, 'abc.e'], 9)[1]==['d'*19, 'e']

def test_labels_of_transformers_tell_the_blocks_apart():
    "Where one name has not the beginning of the others"
    names = [f'bert.encoder.layer.{i}.{p}' for i in range(6) for p in ('attention.self.query','attention.self.value','attention.output.LayerNorm','output.dense')]
    short = thinned([*names,'classifier'], 100)[1]
    assert len(set(short))==len(names)+1 and max(map(len, short))<=22 and short[-1]=='classifier' and 'b.e.l.3.a.self.query' in short
    assert thinned(['features.denseblock12.denselayer3.conv.weight','x'], 9)[1][0].endswith('weight')

def test_pictures_of_nothing_finite():
    "Histograms and gradients of layers that give NaN have a cross, not an empty column"
    h = pd.DataFrame({'a':np.eye(9)[4], 'b':np.zeros(9)}, index=np.linspace(-4, 4, 9))
    ax = plot_hists(h)
    cross, = [o for o in ax.get_lines() if o.get_marker()=='x']
    assert list(cross.get_xdata())==[1] and cross.get_label()=='not finite' and ax.get_images()[0].get_interpolation()=='nearest'
    df = pd.DataFrame(dict(layer=['a','b','c'], type='Linear', shape=[(8,4)]*3, mean=0., std=1., near_zero=0.5, status='ok', grad_std=[0.1,np.nan,np.inf]))
    ax = plot_grads(InitReport(df))
    cross, = [o for o in ax.get_lines() if o.get_marker()=='x']
    assert list(cross.get_xdata())==[1,2] and ax.get_yscale()=='log' and ax.get_ylabel()=='std of the gradient (log scale)'
    ax = plot_grads(InitReport(df.assign(grad_std=np.nan)))
    assert ax.get_yscale()=='linear' and ax.get_ylabel()=='std of the gradient'

# Names, given axes, single points

def wild(): return ['_mine', '', r'a$\frac$', 'b$_1$', '__', 'c$']

def test_any_name_stands_in_a_legend_as_it_is():
    "One that begins with an underscore, an empty one, one that would be mathematics; the only one, and the second"
    n = len(wild())
    many = {k:report([1.,2.+i], grad_std=[1.,0.]) for i,k in enumerate(wild())}
    for rs in (many, *({k:r} for k,r in many.items())):
        for f in (plot_init_stats, plot_grads, plot_depth):
            ax = np.ravel(f(rs))[-1]
            ax.figure.draw_without_rendering() # mathematics with an unknown symbol would raise
            legend = ax.get_legend() or ax.figure.legends[0]
            shown = [t.get_text().replace(r'\$', '$').lstrip(' ') for t in legend.get_texts()]
            assert set(rs)<=set(shown) and not any(t._preprocess_math(t.get_text())[1] for t in legend.get_texts())
            plt.close('all')
    for f in (plot_metrics, plot_lr_range):
        for ax in (f(results_of(*wild())), plot_side_by_side({'one':results_of(*wild())}, f)[0]):
            ax.figure.draw_without_rendering()
            assert len(texts(ax.get_legend() or ax.figure.legends[0]))==n
    assert as_label('lsuv')=='lsuv' and as_label(3)=='3' and as_label('_a$')==r' _a\$'

def test_layers_may_be_called_anything():
    names = [r'a$\frac$','$x$','_b']
    for ax in (*plot_init_stats(report([1.]*3, names=names)), plot_grads(report([1.]*3, names=names, grad_std=1.)), plot_hists(pd.DataFrame({n:[0.,1.] for n in names}, index=[-1.,1.]))):
        ax.figure.draw_without_rendering()
        assert [t.get_text() for t in ax.get_xticklabels()]==names and not any(t.get_parse_math() for t in ax.get_xticklabels())

def test_no_legend_without_handles():
    fig = plt.figure(layout='constrained')
    legend_below(fig, [])
    assert not fig.legends

def test_a_second_report_in_the_same_axes():
    "Each stands over its own layers, those of both have their names, none leaves the panel; colours and marks are told"
    a = report([1.,0.,3.,4.], [0.,0.,3.,math.nan], ['ok','zero','ok','ok'], names=list('abcd'), grad_std=[1.,0.,3.,4.])
    b,c = report([3.,4.], names=['c','d'], grad_std=[3.,4.]),report([5.,6.], names=['b2','e'], grad_std=[5.,6.])
    axs = plt.subplots(1, 3)[1]
    for k,r in dict(x=a, y=b, z=c).items():
        plot_init_stats({k:r}, axs=axs[:2])
        plot_grads({k:r}, ax=axs[2])
    for ax in axs:
        at = {t.get_text():x for t,x in zip(ax.get_xticklabels(), ax.get_xticks())}
        for k,layers in dict(x='a b c d', y='c d', z='b2 e').items(): assert list(lines(ax)[k].get_xdata())==[at[n] for n in layers.split()]
        assert set(at)=={'a','b','c','d','b2','e'} and ax.get_xlim()==(-0.5,5.5) and len({to_hex(lines(ax)[k].get_color()) for k in 'xyz'})==3
        assert all(list(o.get_xdata())==[at['b']] for o in marks(ax, 'o'))
    assert texts(axs[1].get_legend())==['x','y','z','zero by design','not finite'] # the marks are those of the first

def test_a_log_scale_stays_one():
    axs = plt.subplots(1, 2)[1]
    for k,r in dict(wide=report([1.,1e4,0.], status=['ok','ok','zero']), narrow=report([1.,0.,2.], status=['ok','dead','ok'])).items(): plot_init_stats({k:r}, axs=axs)
    assert axs[1].get_yscale()=='log' and [list(o.get_xdata()) for o in marks(axs[1], 'v')]==[[1]] and texts(axs[1].get_legend())[2:]==['zero by design','dead']

@pytest.mark.parametrize('log', [False, True])
def test_circles_are_where_the_layer_was_measured(log):
    "Zero by design, but with a bias; on the frame only where the std is 0"
    axs = plot_init_stats(report([1.,0.5,0.,1e4 if log else 1.], [0.,0.3,0.,0.], ['ok','zero','zero','ok']))
    for ax,value in zip(axs, (0.3,0.5)):
        found = {int(x): (float(y), o.get_transform()==ax.get_xaxis_transform()) for o in marks(ax, 'o') for x,y in zip(o.get_xdata(), ys(o))}
        assert found=={1:(value,False), 2:(0.,ax is axs[1])}, found
        assert list(np.isnan(ys(lines(ax)['as it is'])))==[False,True,True,False]

def test_crosses_where_some_values_are_not_finite():
    "All columns whose shares are not all of the values; the axes' own legend is inside where they were given"
    h = pd.DataFrame({'a':[0.5,0.5], 'b':[0.5,0.484], 'c':[0.,0.], 'd':[0.5,0.5-1e-8]}, index=[-1.,1.])
    ax = plot_hists(h, ax=plt.subplots()[1])
    (cross,) = marks(ax, 'x')
    assert list(cross.get_xdata())==[1,2,3] and list(ys(cross))==[1,1,1] and texts(ax.get_legend())==['not finite']
    assert ax.get_legend().get_window_extent().x1<=ax.get_window_extent().x1 and plot_hists(h[['a']]).get_legend() is None

def test_legends_are_inside_axes_that_were_given():
    "Beside them is a neighbour"
    r = report([1.,2.], grad_std=[1.,2.])
    for f,o in [(plot_depth,r), (plot_grads,r), (plot_metrics,results()), (plot_lr_range,results())]:
        fig,axs = plt.subplots(1, 3, figsize=(12,3))
        f(o, ax=axs[0])
        fig.draw_without_rendering()
        assert axs[0].get_legend().get_window_extent().x1<=axs[0].get_window_extent().x1

def shown_ticks(axis):
    low,high = sorted(axis.get_view_interval())
    return [t for t in axis.get_ticklocs() if low<=t<=high]

def test_one_point_is_seen():
    "It has a dot, and one tick"
    for ax,dots in ((plot_depth(report([2.])), [True]), (plot_depth(report([2.,math.nan,1.])), [True]), (plot_depth(report([2.,0.,1.])), [True,False,True])):
        (line,) = lines(ax).values()
        assert line.get_marker()=='o' and line.get_markevery().tolist()==dots
    assert shown_ticks(plot_depth(report([2.])).xaxis)==[1]==shown_ticks(plot_metrics(results().query('epoch==1')).xaxis)
    assert lines(plot_depth(report([1.,2.])))['as it is'].get_marker()=='' and shown_ticks(plot_depth(report([1.,2.,3.])).xaxis)==[1,2,3]
    ax = plt.subplots()[1]
    draw_line(ax, [0,1,2,3,4,5], [1,math.nan,3,4,math.inf,1])
    whole_numbers(ax.yaxis)
    assert ax.get_lines()[0].get_markevery().tolist()==[True,False,False,False,False,True] and shown_ticks(ax.yaxis)==[1,2,3,4]

def test_guides_by_depth_are_the_targets():
    assert guides(plot_depth(report([.1], target=.1)))==[.1] and guides(plot_depth({'a':report([1.]), 'b':report([1.], target=2.)}))==[1.,2.]
    for target in (.1,1.,3.): # the scale is that of decades, not of rounding noise
        low,high = plot_depth(report([target,target*(1+1e-5),target], target=target)).get_ylim()
        assert low<0.95*target and high>1.05*target and high/low>=2

@pytest.mark.parametrize('metric', ['perplexity','mse','rmse','valid_rmse','mae','msle','exp_rmspe','hamming_loss','brier_score','Mean Absolute Error','wer'])
def test_less_is_better(metric):
    df = pd.DataFrame([dict(scheme='a', lr=lr, seed=0, epoch=1, **{metric:v}) for lr,v in ((1e-3,2.3), (1e-2,.4), (1e-1,9.))])
    for lowest,best in ((None,.01), (True,.01), (False,.1)):
        (star,) = [o for o in plot_lr_range(df, metric, lowest=lowest).get_lines() if o.get_marker()=='*']
        assert star.get_xdata()[0]==best

@pytest.mark.parametrize('metric', ['f1_score','dice','roc_auc_score','top_k_accuracy','explained_variance','corpus_bleu','my mse2','answer'])
def test_more_is_better(metric):
    df = pd.DataFrame([dict(scheme='a', lr=lr, seed=0, epoch=1, **{metric:v}) for lr,v in ((1e-3,2.3), (1e-2,.4), (1e-1,9.))])
    (star,) = [o for o in plot_lr_range(df, metric).get_lines() if o.get_marker()=='*']
    assert star.get_xdata()[0]==.1

def test_a_second_report_is_no_option():
    r = report([1.], grad_std=[1.])
    with pytest.raises(TypeError, match='zoom=InitReport: not a number; several reports go in one dict'): plot_init_stats(r, r)
    for f in (plot_grads, plot_depth):
        with pytest.raises(TypeError, match='ax=InitReport: not axes; several reports go in one dict'): f(r, r)
    assert plot_init_stats(r, np.float32(0.5))[0].get_ylim()==(-.5,.5)
    with pytest.raises(TypeError): axes_or_new([1], None)

def test_gradients_without_a_report():
    "As `layer_grads` gives them, alone or by name"
    s = pd.Series({'0':1e-3, '2':0., '4':2e-3})
    ax = plot_grads(s)
    assert [t.get_text() for t in ax.get_xticklabels()]==['0','2','4'] and ys(lines(ax)['as it is'])[2]==2e-3 and ax.get_yscale()=='log'
    both = plot_grads({'a':s, 'b':report([1.], names=['2'], grad_std=[1.])})
    assert list(lines(both)['a'].get_xdata())==[0,1,2] and list(lines(both)['b'].get_xdata())==[1]
