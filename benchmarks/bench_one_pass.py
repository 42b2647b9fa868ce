"""LSUV next to one forward pass, and to fastinit's peers, over twelve models; writes one_pass.csv, peers.csv and their charts.

    make bench        or        python benchmarks/bench_one_pass.py [models whose peers to measure again]

With --device cuda on a GPU, its memory too, to one_pass_cuda.csv and peers_cuda.csv (`make gpu`).
"""
import sys
import matplotlib.pyplot as plt
from fastprogress.fastprogress import progress_bar
from side_by_side import *

def ratio(name, bs, size):
    "One row: LSUV and the report beside one forward pass"
    torch.manual_seed(0)
    model,x = make(name, size),batch(name, bs, size)
    fs = dict(forward=lambda: forward(model, x), lsuv=lambda: ours(model, x), unverified=lambda: unverified(model, x), stats=lambda: init_stats(model, x))
    t = medians(fs)
    row = dict(model=name, batch='×'.join(map(str, x.shape)), layers=len(init_layers(model)), forward_s=t['forward'], lsuv_s=t['lsuv'],
               ratio=t['lsuv']/t['forward'], unverified_ratio=t['unverified']/t['forward'], stats_ratio=t['stats']/t['forward'])
    return {**row, **{f'{k}_mib':peak_mib(f) for k,f in fs.items()}} if on_gpu else row

def beside(name, bs, size):
    "One row a method: passes, largest error and time, each on a fresh copy of the same model"
    torch.manual_seed(0)
    model,x,rows = make(name, size),batch(name, bs, size, vectors=64),{} # 200 layers take a peer 400 passes and more
    about = dict(model=name, batch='×'.join(map(str, x.shape)))
    for k,f in peers.items():
        m = deepcopy(model)
        try: rows[k] = dict(about, method=k, passes=passes(m, lambda: f(m, x)), worst=worst(m, x, train_norm=f in (ours, course)))
        except Exception as e: rows[k] = dict(about, method=k, failed=f'{type(e).__name__}: {e}'[:80])
    def _fresh(f):
        m = deepcopy(model) # in the run, for all alike: an initialized model would be done in fewer passes
        f(m, x)
    fs = {k:partial(_fresh, peers[k]) for k,r in rows.items() if 'failed' not in r}
    times = interleaved({'copy':lambda: deepcopy(model), **fs}, runs=5, warm=0, limit=45) # each row says how many there were
    copy = pd.Series(times.pop('copy')).median()
    for k,t in times.items(): rows[k].update(seconds=pd.Series(t).median()-copy, runs=len(t))
    for r in rows.values(): r['times_slower'] = r.get('seconds', float('nan'))/rows['fastinit']['seconds']
    return list(rows.values())

def bars(ax, df, col, by, names, fmt='{:.3g}'):
    "Horizontal bars, a group a model, a bar for each of `names`, with their numbers"
    h = 0.8/len(names)
    for i,k in enumerate(names):
        v = df[df[by]==k].set_index('model')[col].reindex(df.model.unique())
        y = [j - 0.4 + h/2 + i*h for j in range(len(v))]
        ax.barh(y, v, h, color=colors.get(k, ['#009E73','#0072B2'][i%2]), label=k)
        for a,b in zip(v, y):
            if a==a: ax.text(a, b, ' '+fmt.format(a), va='center', fontsize=9)
    ax.set_yticks(range(len(v)), v.index); ax.invert_yaxis()

def draw_ratios(df):
    "The chart of one_pass.csv"
    df['size'] = df.batch.where(df.model!='mlp_200', '32×3×128×128')
    fig,axs = plt.subplots(1, 2, figsize=(10,7), layout='constrained', sharex=True, sharey=True)
    for ax,col,title in zip(axs, ('ratio','unverified_ratio'), ('corrected and measured','corrected only, verify=False')):
        bars(ax, df, col, 'size', list(df['size'].unique()), '{:.2f}')
        ax.axvline(1, color='0.5', ls='--', lw=1)
        ax.set_title(title)
    axs[0].invert_yaxis() # shared, so turned twice
    axs[0].margins(x=0.12)
    fig.supxlabel('time of lsuv_(pre=None) ÷ one forward pass without gradients (mlp_200: batch of 512×512)', fontsize=10)
    fig.legend(*axs[0].get_legend_handles_labels(), loc='outside upper center', ncols=2, frameon=False)
    save_png(fig, here/f'one_pass{suffix}.png', dpi=110)

def draw_peers(df):
    "The chart of peers.csv"
    df['model'] = df.model.where(df.batch.isin(['16×3×64×64','64×512']), df.model+'\n'+df.batch)
    fig,(a,b) = plt.subplots(1, 2, figsize=(10.5,11), layout='constrained', sharey=True)
    bars(a, df, 'seconds', 'method', list(peers))
    bars(b, df.assign(worst=df.worst.clip(1e-8, 1e3)), 'worst', 'method', list(peers), '{:.0e}')
    a.set_xlabel('seconds (log scale)')
    b.set_xlabel('largest |std − 1| of a layer (log scale)')
    for ax in (a,b): ax.set_xscale('log'); ax.margins(x=0.16)
    a.invert_yaxis() # shared, so turned twice
    fig.legend(*a.get_legend_handles_labels(), loc='outside upper center', ncols=4, frameon=False)
    save_png(fig, here/f'peers{suffix}.png', dpi=110)

def measure_peers(names):
    "peers.csv, saved after each model; those of models not named stay"
    f = here/f'peers{suffix}.csv'
    cases = [(n,16,64) for n in names] + [(n,32,128) for n in names if n=='simple_convnet'] # whose pass takes but 2 ms otherwise
    for c in progress_bar(cases):
        df = pd.DataFrame(beside(*c)).assign(machine=machine)
        if f.exists():
            old = pd.read_csv(f)
            df = pd.concat([old[(old.model!=c[0]) | (old.batch!=df.batch[0])], df])
        save(df.sort_values('model', key=lambda s: s.map(list(models).index), kind='stable'), 'peers', show=c==cases[-1])
    draw_peers(pd.read_csv(f))

def main():
    if named := [o for o in sys.argv[1:] if o in models]: return measure_peers(named)
    cases = [(n,*size) for size in ((32,128),(16,64)) for n in models if not (n=='mlp_200' and size[1]==64)]
    df = pd.DataFrame([ratio(*c) for c in progress_bar(cases)])
    save(df, 'one_pass')
    for _,d in df.groupby(df.batch=='16×3×64×64'):
        print(f"{d.batch.iloc[0]}: median {d.ratio.median():.3f}, worst {d.ratio.max():.3f}; verify=False {d.unverified_ratio.median():.3f}")
    draw_ratios(df)
    measure_peers(list(models))

if __name__=='__main__':
    keep_memory()
    main()
