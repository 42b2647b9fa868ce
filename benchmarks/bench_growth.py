"""How the time grows with depth, batch and width, beside one forward pass and the peers; writes growth.csv and growth.png.

    make bench        or        python benchmarks/bench_growth.py
"""
import matplotlib.pyplot as plt
from fastprogress.fastprogress import progress_bar
from side_by_side import *

def cases():
    "(family, what grows, how far, model, batch)"
    for d in (10,30,100,300,1000):
        yield 'mlp','depth',d,deep_mlp(d, 256),torch.randn(256,256)
        yield 'convnet','depth',d,deep_convnet(d),torch.randn(8,3,16,16)
    for bs in (8,16,32,64,128): yield 'resnet18','batch',bs,tv.resnet18(),torch.randn(bs,3,64,64)
    for w in (64,128,256,512,1024): yield 'mlp','width',w,deep_mlp(20, w),torch.randn(256,w)

def measure(family, axis, n, model, x, most=100):
    "One row a method; the peers, which are quadratic in depth, only up to `most` layers"
    fs = {'forward':lambda: forward(model, x), 'fastinit':lambda: ours(model, x), 'init_stats':lambda: init_stats(model, x)}
    if axis=='depth' and n<=most: fs.update({k:partial(lambda f: f(deepcopy(model), x), peers[k]) for k in ('lsuv','course')})
    t = medians(fs, runs=5, limit=20.)
    return [dict(family=family, axis=axis, n=n, method=k, seconds=v, ratio=v/t['forward']) for k,v in t.items()]

def draw(df):
    "The chart of growth.csv"
    fig,axs = plt.subplots(2, 2, figsize=(10,8), sharey='row', layout='constrained')
    for ax,((family,axis),g) in zip(axs.flat, df.groupby(['family','axis'], sort=False)):
        for k,m in g.groupby('method', sort=False): ax.plot(m.n, m.seconds, marker='o', ms=4, lw=5 if k=='lsuv' else 1.5, color=colors.get(k, '#56B4E9'), ls='--' if k=='forward' else '-', label=k) # wide: another may lie on it
        unit = dict(depth='layers', batch='items', width='features')[axis]
        ax.set(xscale='log', yscale='log', title=dict(mlp='MLP', convnet='plain convnet').get(family, family), xlabel=f'{axis} ({unit}, log scale)')
        ax.grid(alpha=0.25)
    for ax in axs[:,0]: ax.set_ylabel('seconds (log scale)')
    fig.legend(*axs[0,0].get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
    save_png(fig, here/'growth.png', dpi=110)

def main():
    rows = []
    torch.manual_seed(0)
    for c in progress_bar(list(cases())): rows += measure(*c)
    save(pd.DataFrame(rows), 'growth')
    draw(pd.DataFrame(rows))

if __name__=='__main__':
    keep_memory()
    main()
