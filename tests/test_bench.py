"Each benchmark at a tiny size: what it writes is what it says, and its charts are drawn. The full size is `make bench`."
import subprocess, sys, warnings
from pathlib import Path
import pandas as pd, pytest, torch
from torch import nn
from fastinit.article import simple_convnet
sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))

def tiny(n_out): return simple_convnet(n_out)

@pytest.fixture
def bench(monkeypatch, tmp_path):
    "A benchmark by name, which writes to a folder of the test's"
    monkeypatch.setattr(sys, 'argv', ['bench'])
    def _import(name, *needs):
        for o in needs: pytest.importorskip(o)
        with warnings.catch_warnings(): mod = __import__(name)
        for m in (mod, sys.modules.get('side_by_side')):
            if m: monkeypatch.setattr(m, 'here', tmp_path)
        return mod
    return _import

def test_watch(bench, tmp_path):
    bench('bench_watch').main(tiny, bs=4, size=32)
    df = pd.read_csv(tmp_path/'watch.csv').set_index('kind')
    assert list(df['count'])==[4,4,2] and list(df.index)==['plain','watched','after the watched steps'] and set(df.batch)=={'4×3×32×32'}
    assert (df.ratio-df['median']/df['median']['plain']).abs().max()<0.01*df.ratio.max() and df.limit['watched']==1.3

def test_compare_training(bench, tmp_path):
    bench('compare_training').main(tiny, steps=3)
    df = pd.read_csv(tmp_path/'compare_training.csv')
    assert len(df)==4*2*2*3 and set(df.scheme)=={'default','kaiming','lsuv','lsuv_residual'} and set(df.lr)=={1e-4,1e-2} and df.loss.gt(0).all()

PEERS = ('lsuv','torchbearer','torchvision')
def test_growth(bench, tmp_path):
    "A row for each method and depth, beside one forward pass"
    b = bench('bench_growth', *PEERS)
    rows = [r for d in (4,16) for r in b.measure('mlp', 'depth', d, b.deep_mlp(d, 32), torch.randn(16,32))]
    df = pd.DataFrame(rows)
    assert set(df.method)=={'forward','fastinit','init_stats','lsuv','course'} and df.groupby('n').size().eq(5).all()
    t = df.set_index(['method','n']).seconds
    for n in (4,16): assert df.set_index(['method','n']).ratio['fastinit',n]==pytest.approx(t['fastinit',n]/t['forward',n])
    b.draw(df.assign(axis='depth'))
    assert (tmp_path/'growth.png').stat().st_size>1e4

def test_costs(bench, tmp_path):
    b = bench('bench_costs', *PEERS)
    rows = [r for f in (lambda: b.fit(tiny, bs=4, size=32, runs=1), lambda: b.report(10), lambda: b.orthogonal([(32,32),(32,128)])) for r in f()]
    df = pd.DataFrame(rows)
    assert len(df)==2+2+2 and df.measured.notna().all() and (df.reached==(df.measured<=df.limit)).all()
    assert df.what[0].endswith('tiny, batch 4×3×32×32') and '10 layers' in df.what[2]
    for note in df.note[-2:]: assert float(note.partition('≤ ')[2].partition(';')[0])<1e-5
    b.draw(df)
    assert (tmp_path/'costs.png').stat().st_size>1e4

def test_memory(bench):
    "Of a process: more than torch's own peak; of torch: a convolution's output, not all of them"
    b = bench('bench_costs', *PEERS)
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', b._memory, 'simple_convnet', 'lsuv'], capture_output=True, text=True, check=True).stdout
    process,peak,weights,_ = map(float, out.split())
    assert process>100 and 4.5<peak<60 and weights==pytest.approx(sum(p.numel() for p in simple_convnet().parameters())*4/2**20)

def test_where_the_time_goes(bench):
    "The parts and the rest are the whole"
    df = bench('bench_costs', *PEERS).limit(tiny, runs=3).set_index('what').seconds
    assert 2*df.iloc[0]+df.iloc[2:].sum()==pytest.approx(df['lsuv_']) and df.iloc[:7].gt(0).all()

def test_precision(bench):
    for r in bench('bench_costs', *PEERS).precision(): assert r['reached'] and r['measured']<=1e-5
