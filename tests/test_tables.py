"Each number of a table, computed by hand"
import json, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastinit.article.tables import accuracy_table, at_best_lr, balanced, best_difference, best_table, difference_table, last_epoch, read_results, spent, summary_table, whole_seeds, within_seeds

def results(acc, epochs=2, seeds=2):
    "Accuracies {scheme: {lr: [of each seed]}} after the last epoch; 0.9 after those before, so that they must not count"
    return pd.DataFrame([dict(scheme=k, lr=lr, seed=s, epoch=e, accuracy=a if e==epochs else 0.9) for k,by in acc.items() for lr,accs in by.items()
                         for s,a in enumerate(accs) for e in range(1, epochs+1)])

RES = results({'lsuv': {1e-3:[.5,.7], 1e-2:[.8,.82]}, 'kaiming': {1e-3:[.6,.6], 1e-2:[.1,.2]}, 'normal': {1e-3:[.1,.1], 1e-2:[.1,.1]}})

def test_last_epoch():
    last = last_epoch(RES)
    assert len(last)==12 and set(last.epoch)=={2} and last.accuracy.max()==.82

def test_balanced():
    "A learning rate and seed at which one scheme is missing goes"
    part = RES.drop(RES.index[(RES.scheme=='kaiming') & (RES.lr==1e-2) & (RES.seed==1)])
    left = balanced(part)
    assert {(lr,s) for lr,s in zip(left.lr, left.seed)}=={(1e-3,0),(1e-3,1),(1e-2,0)} and len(left)==3*3*2
    assert len(balanced(RES))==len(RES)

def test_whole_seeds():
    "A seed at which one run is missing goes; where all lack it, all stay"
    part = RES.drop(RES.index[(RES.scheme=='kaiming') & (RES.lr==1e-2) & (RES.seed==1)])
    assert set(whole_seeds(part).seed)=={0} and len(whole_seeds(part))==len(RES)/2
    assert len(whole_seeds(RES[RES.scheme!='lsuv']))==len(RES)*2/3
    assert best_table(whole_seeds(part)).best_lr['lsuv']==1e-2

def test_accuracy_table():
    t = accuracy_table(RES)
    assert list(t.index)==['lsuv','kaiming','normal'] and list(t.columns)==['0.001','0.01']
    assert t.loc['lsuv','0.001']=='0.600 (0.500–0.700)' and t.loc['kaiming','0.01']=='0.150 (0.100–0.200)'
    assert accuracy_table(RES[RES.seed==0]).loc['lsuv','0.01']=='0.800'

def test_best_table():
    t = best_table(RES)
    assert list(t.best_lr)==[1e-2,1e-3,1e-3] # of equals the smallest
    assert np.allclose(t['mean'], [.81,.6,.1]) and list(t['min'])==[.8,.6,.1] and list(t['max'])==[.82,.6,.1] and list(t.seeds)==[2,2,2]
    assert list(t.good_lrs)==['0.01','none','none'] and list(best_table(RES, share=0.7).good_lrs)==['0.001 0.01','0.001','none']

def test_mean_not_median():
    t = best_table(results({'a': {1e-3:[.1,.5,.6], 1e-2:[.45,.45,.45]}}))
    assert t.best_lr['a']==1e-2 and abs(t['mean']['a']-.45)<1e-9

def test_a_rate_with_fewer_seeds_is_not_the_best():
    lucky = results({'a': {1e-3:[.5,.5], 1e-2:[.9]}})
    assert best_table(lucky).best_lr['a']==1e-3 and best_table(lucky)['mean']['a']==.5 and best_table(lucky).seeds['a']==2

def test_at_best_lr():
    best = at_best_lr(RES)
    assert len(best)==3*2*2 and {k:set(d.lr) for k,d in best.groupby('scheme')}=={'lsuv':{1e-2},'kaiming':{1e-3},'normal':{1e-3}}

def test_difference_table():
    d = difference_table(RES)
    assert np.allclose(d['mean'], [0.,.66]) and np.allclose(d['min'], [-.1,.62]) and np.allclose(d['max'], [.1,.7])
    assert list(d.seeds)==[2,2] and list(d.seeds_better)==[1,2]
    tie = results({'lsuv':{1e-3:[.5,.6]}, 'kaiming':{1e-3:[.5,.5]}})
    assert list(difference_table(tie).seeds_better)==[1] # a tie is not better

@pytest.mark.parametrize('a,b,words', [([.8,.7],[.6,.6],'lsuv better in both seeds'), ([.5,.5],[.6,.6],'kaiming better in both seeds'),
                                       ([.8,.5],[.6,.6],'no clear difference'), ([.6,.8],[.6,.6],'no clear difference'), ([.8],[.6],'lsuv better in the one seed')])
def test_best_difference(a, b, words):
    "Better is who is better from every seed"
    mean,lo,hi,said = best_difference(results({'lsuv':{1e-3:a}, 'kaiming':{1e-2:b}}))
    d = np.subtract(a, b)
    assert np.allclose([mean,lo,hi], [d.mean(),d.min(),d.max()]) and said==words

@pytest.mark.parametrize('a,b,less', [([.8,.7],[.65,.69],True), ([.8,.7],[.6,.6],False), ([.6,.5],[.6,.6],False), ([.8],[.6],False)])
def test_within_seeds(a, b, less):
    "Ahead, by less than the seeds of the one that is ahead differ"
    assert within_seeds(results({'lsuv':{1e-3:a}, 'kaiming':{1e-2:b}}))==less

def test_summary_table():
    "A row for an experiment, a column for each scheme that was asked for; what made it"
    folder = Path(__file__).parent.parent/'benchmarks/article/simple_digits'
    row = summary_table({'five layers':folder}, ['kaiming','nobody']).loc['five layers']
    best = best_table(read_results(folder)[0]).loc['kaiming']
    assert list(row.index)==['trained on','kaiming','nobody','seeds'] and row.nobody=='missing' and row.seeds==3
    assert row.kaiming.startswith(f"{float(best['mean']):.3f} (") and row.kaiming.endswith(f' at {best.best_lr:g}')
    assert summary_table({'five layers':folder}, ['nobody']).seeds.item()==0
    assert '--out benchmarks/article/simple_digits</code>' in read_results(folder)[1]

@pytest.mark.parametrize('runs,cpu_s,words', [(1,4.,('1 run','4 seconds of CPU time')), (1,0.34,('1 run','0.34 seconds of CPU time')), (2,0.5,('2 runs','1 second of CPU time')),
    (3,20.,('3 runs','1 minute of CPU time')), (12,44.,('12 runs','9 minutes of CPU time'))])
def test_what_runs_cost(runs, cpu_s, words):
    "Each run once, whatever its epochs"
    assert spent(results({'a':{1e-3:[.5]*runs}}).assign(cpu_s=cpu_s))==words

def test_cost_in_the_sentence(tmp_path):
    RES.query("scheme=='lsuv' and lr==1e-3 and seed==0").assign(cpu_s=3.).to_csv(tmp_path/'results.csv', index=False)
    info = dict(settings={}, made_by=[dict(threads=1, torch='2', fastai='3', command='c')])
    (tmp_path/'run.json').write_text(json.dumps(info))
    assert read_results(tmp_path)[1].startswith('1 run, seed 0; 3 seconds of CPU time, 1 thread; torch 2')
    for f in ('results.csv','run.json'):
        (tmp_path/f).unlink()
        with pytest.raises(FileNotFoundError, match=f'no earlier results in {tmp_path}: {f} is missing'): read_results(tmp_path)

def test_every_machine_is_named(tmp_path):
    "Runs of one folder may come from several"
    folder = Path(__file__).parent.parent/'benchmarks/imagenette/convnet20'
    for f in ('results.csv','run.json'): shutil.copy(folder/f, tmp_path)
    cfg = json.loads((tmp_path/'run.json').read_text())
    one = dict(cfg['made_by'][-1], processor='A', threads=1, torch='2.6.0')
    cfg['made_by'] = [one, dict(one, processor='B', threads=2, torch='2.14.1'), one]
    (tmp_path/'run.json').write_text(json.dumps(cfg))
    assert '1 thread of A and 2 threads of B; torch 2.6.0 and 2.14.1, fastai ' in read_results(tmp_path)[1]
