"Which layers are chosen, what they are called, why others are left alone, and what is said where none can be"
import pytest, torch
from torch import nn
from fastinit.all import *
from fastinit.layers import (affine_types, attention_units, check_model, chosen_layers, is_affine, is_batchnorm, is_known, is_leaf, layer_names, leaves, recurrent_params,
                             scaled_param, split_layers, unknown_weights, unwrap, zero_layers)

def net(): return nn.Sequential(nn.Conv2d(3,4,3), nn.Sequential(nn.Linear(4,4), nn.ReLU()), nn.BatchNorm2d(4), nn.GRU(4,4), nn.Embedding(5,4), nn.Linear(4,2))
def names(*args, **kwargs): return list(init_layers(*args, **kwargs))

def test_names():
    "Dotted, in the order of definition, each module once; the model itself by its class"
    m = net()
    m.again = m[1][0]
    assert list(layer_names(m).values())==['Sequential','0','1','1.0','1.1','2','3','4','5']
    m[1].none = None
    m[1].register_module('empty', None)
    assert len(layer_names(m))==9

@pytest.mark.parametrize('layers,chosen', [
    (None, ['0','1.0','3','5']), (nn.Linear, ['1.0','5']), ('1', ['1.0']), ('1.0', ['1.0']), (['0','1'], ['0','1.0']), ([nn.Conv2d,'5'], ['0','5']), (nn.Embedding, ['4']),
    ('4', ['4']), ('2', ['2']), (lambda n,m: n=='5', ['5']), (nn.RNNBase, ['3']), ([nn.Embedding,nn.Linear], ['1.0','4','5']), ((nn.GRU,), ['3']), (iter(['5']), ['5'])])
def test_choice(layers, chosen): assert names(net(), layers)==chosen

def test_choice_by_module():
    m = net()
    assert names(m, m[1])==['1.0'] and names(m, [m[0],m[4]])==['0','4'] and names(m, m)==['0','1.0','3','5']
    assert list(chosen_layers(m.requires_grad_(False), '1'))==['1.0'] and names(m, '1')==[] and names(m, '1', force=True)==['1.0']

@pytest.mark.parametrize('layers,said', [
    ('1.9', "no layer to initialize is named '1.9' or lies in it; near: 1.1, 1.0"), ('zzz', "no layer to initialize is named 'zzz' or lies in it; near: 0, 1.0, 3, 5"),
    (['0','typo'], "no layer to initialize is named 'typo' or lies in it; near: "),
    (nn.Bilinear, "Sequential has no layer to initialize: `layers=<class 'torch.nn.modules.linear.Bilinear'>` chooses none; it has Conv2d, Linear, BatchNorm2d, GRU, Embedding"),
    ('Conv2d', "no layer to initialize is named 'Conv2d' or lies in it; near: the type, `layers=nn.Conv2d`"), ('gru', "no layer to initialize is named 'gru' or lies in it; near: the type, `layers=nn.GRU`"),
    ([], 'Sequential has no layer to initialize: `layers=[]` chooses none; it has Conv2d'), (nn.ReLU, '1.1 (ReLU) has no weight: leave it out of `layers`')])
def test_wrong_choice(layers, said):
    with pytest.raises(ValueError) as e: init_layers(net(), layers)
    assert str(e.value).startswith(said), e.value

def test_no_near_name():
    "At most five are listed"
    with pytest.raises(ValueError) as e: init_layers(nn.Sequential(*[nn.Linear(2,2) for _ in range(9)]), 'qqqq')
    assert str(e.value).endswith('near: 0, 1, 2, 3, 4')

def test_nothing_to_choose():
    with pytest.raises(ValueError) as e: init_layers(nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert str(e.value)==('Sequential has no layer to initialize: none is linear, convolutional, bilinear or recurrent; choose with `layers=`; it has no weights')
    with pytest.raises(ValueError, match='it has Embedding, LayerNorm$'): init_layers(nn.Sequential(nn.Embedding(3,3), nn.LayerNorm(3), nn.Embedding(2,2)))

# What cannot be initialized

def broken(**attrs):
    m = nn.Sequential(nn.Linear(2,2))
    for k,v in attrs.items(): setattr(m[0].weight if k!='_is_fsdp_managed_module' else m[0], k, v)
    return m

@pytest.mark.parametrize('model,said', [
    (nn.Sequential(nn.LazyLinear(2)), '0.weight is not built yet (lazy module): run one batch through the model first'),
    (nn.Sequential(nn.Linear(2,2,device='meta')), '0.weight has no values (meta device): `model.to_empty(device=…)` first'),
    *((broken(**{k:True}), '0.weight is sharded over several processes: initialize the model, then shard it') for k in ('device_mesh','_sharded_size','_is_fsdp_managed_module'))],
    ids=['lazy','meta','mesh','sharded','fsdp'])
def test_models_that_cannot_be(model, said):
    for f in (check_model, init_layers, lambda m: lsuv_(m, torch.randn(4,2)), kaiming_):
        with pytest.raises(ValueError) as e: f(model)
        assert str(e.value)==said

def test_what_is_no_model():
    for o,said in ((xresnet, 'expected an nn.Module, got function'), (nn.Linear, "expected an nn.Module, got <class 'torch.nn.modules.linear.Linear'>"), ([nn.Linear(2,2)], 'got list')):
        with pytest.raises(TypeError) as e: check_model(o)
        assert said in str(e.value) and str(e.value).endswith('pass a built model, such as `learn.model` or `xresnet50(n_out=10)`')
    with pytest.raises(ValueError, match='^Linear is scripted, its layers cannot be seen: initialize it, then script it'): check_model(torch.jit.script(nn.Linear(2,2)))
    assert check_model(m := net()) is m
def xresnet(): pass

def test_wrappers():
    m = net()
    assert unwrap(nn.DataParallel(m)) is m and unwrap(torch.compile(m)) is m and unwrap(nn.DataParallel(torch.compile(m))) is m and unwrap(m) is m
    assert names(nn.DataParallel(m))==names(m)

# Why layers are left alone

def left(model, *args, **kwargs): return split_layers(model, *args, **kwargs)[1]

def test_why_left():
    m = nn.Sequential(*[nn.Linear(4,4) for _ in range(7)], nn.Embedding(4,4))
    m[0].requires_grad_(False)
    m[1].bias.requires_grad_(False)
    nn.init.zeros_(m[2].weight)
    m[3].weight = m[7].weight # tied to an embedding, which is not initialized
    m[4].bias = m[5].bias # of two layers: neither can have its own way
    assert left(m)=={'0':'frozen','1':'frozen','2':'zero','3':'shared','4':'shared','5':'shared'} and names(m)==['6']
    assert left(m, force=True)=={'2':'zero','3':'shared','4':'shared','5':'shared'}
    assert left(m, skip={'6':'loaded', '9':'loaded'})['6']=='loaded' and left(m, '0')=={'0':'frozen'}
    assert left(m, [nn.Linear,nn.Embedding])=={'0':'frozen','1':'frozen','2':'zero','4':'shared','5':'shared'} # all that have the weight are chosen

def test_all_zero():
    "Where nothing remains, as each chosen layer is zero; in order"
    m = nn.Sequential(*[nn.Linear(4,4) for _ in range(12)])
    for o in m: nn.init.zeros_(o.weight)
    assert list(left(m).items())==[(str(i),'all zero') for i in range(12)] and left(m, ['3','4'])=={'3':'all zero','4':'all zero'}
    m[5].requires_grad_(False)
    assert left(m)=={str(i): 'frozen' if i==5 else 'zero' for i in range(12)} # which has its own warning
    nn.init.ones_(m[5].requires_grad_(True).weight)
    assert set(left(m).values())=={'zero'} and names(m)==['5']

def test_tied_layers_are_no_reason():
    "Two layers with the same weight, both chosen; the bias too"
    m = nn.Sequential(nn.Linear(4,4), nn.Linear(4,4))
    m[1].weight = m[0].weight
    assert left(m)=={} and left(m, '0')=={'0':'shared'}
    m[1].bias = m[0].bias
    assert left(m)=={}

def test_unsupported():
    m = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4,4)), nn.utils.parametrizations.weight_norm(nn.Linear(4,4)), nn.utils.weight_norm(nn.Linear(4,4)), nn.Linear(4,4))
    assert left(m)=={'0':'unsupported parametrization'}
    assert scaled_param(m[1]) is m[1].parametrizations.weight.original0 and scaled_param(m[2]) is m[2].weight_g and scaled_param(m[3]) is m[3].weight and scaled_param(m[0]) is None
    assert scaled_param(nn.ReLU()) is None

def test_zero_layers():
    "All of it, not the first value alone"
    a,b,c,d = nn.Linear(3,3),nn.Linear(3,3),nn.Linear(3,3),nn.Linear(0,3)
    nn.init.zeros_(a.weight)
    b.weight.data.flatten()[:-1] = 0
    ls = dict(a=a, b=b, c=c, d=d)
    assert zero_layers(ls)=={'a','d'}
    c.gain = nn.Parameter(torch.zeros(1))
    assert zero_layers(ls)=={'a','d'} and zero_layers(ls, gains=True)=={'a','c','d'}
    nn.init.zeros_(b.bias)
    assert zero_layers(dict(b=b), gains=True)==set() # a bias of 0 is usual

def test_what_a_scheme_must_keep():
    "Frozen parameters; if somebody chose, all others; ids, so that wrapping loses none"
    m = nn.Sequential(nn.Linear(4,4), nn.Linear(4,4).requires_grad_(False), nn.LayerNorm(4))
    def kept(*args, **kwargs):
        ids = {id(p):n for n,p in m.named_parameters()}
        return {ids[i] for i in init_layers(m, *args, **kwargs).kept}
    assert kept()=={'1.weight','1.bias'} and kept(force=True)==set() and kept('0')=={'1.weight','1.bias','2.weight','2.bias'} and kept('1', force=True)=={'0.weight','0.bias','2.weight','2.bias'}
    assert init_layers(m).by_default and not init_layers(m, '0').by_default
    assert init_layers(m, init_layers(m, '0'))==init_layers(m, '0')

# Kinds

def test_kinds():
    assert all(is_affine(o) and is_known(o) for o in (nn.Linear(2,2), nn.Conv1d(1,1,1), nn.ConvTranspose3d(1,1,1), nn.Bilinear(2,2,2)))
    assert all(is_known(o) and not is_affine(o) for o in (nn.LSTM(2,2), nn.GRUCell(2,2))) and not is_known(nn.Embedding(2,2)) and not is_known(nn.BatchNorm1d(2))
    assert is_leaf(nn.ReLU()) and is_leaf(nn.utils.parametrizations.weight_norm(nn.Linear(2,2))) and not is_leaf(nn.Sequential(nn.ReLU())) and isinstance(nn.Conv2d(1,1,1), affine_types)
    assert is_batchnorm(nn.BatchNorm2d(2)) and is_batchnorm(nn.SyncBatchNorm(2)) is (nn.SyncBatchNorm.forward is nn.BatchNorm2d.forward) and not is_batchnorm(nn.LayerNorm(2))
    own = nn.BatchNorm2d(2)
    own.forward = lambda x: x
    assert not is_batchnorm(own)

def test_leaves():
    "Modules without children, and layers and normalizations with something in them; not what parametrizes"
    class Norm(nn.LayerNorm):
        def __init__(self, n): super().__init__(n); self.act = nn.ReLU()
    m = nn.Sequential(nn.Sequential(nn.ReLU()), nn.utils.parametrizations.weight_norm(nn.Linear(2,2)), Norm(2), nn.MultiheadAttention(4,2))
    all_names = layer_names(m)
    assert [all_names[o] for o in leaves(all_names)]==['0.0','1','2','2.act','3.out_proj']
    assert {all_names[k]:all_names[v] for k,v in attention_units(all_names).items()}=={'3.out_proj':'3'}

def test_recurrent_params():
    assert recurrent_params(nn.LSTM(2,3))==['weight_ih_l0','weight_hh_l0','bias_ih_l0','bias_hh_l0'] and recurrent_params(nn.GRUCell(2,3, bias=False))==['weight_ih','weight_hh']

class Own(nn.Module):
    "Parameters by name"
    def __init__(self, **params):
        super().__init__()
        for k,p in params.items(): self.register_parameter(k, None if p is None else nn.Parameter(p, requires_grad=p.is_floating_point()))

def counted(model): return {n:(t, len(ws), can) for n,(t,ws,can) in unknown_weights(model).items()}

@pytest.mark.parametrize('params,n,choosable', [
    (dict(weight=torch.ones(3,3)), 1, True), (dict(experts=torch.ones(2,3,3)), 1, False), (dict(a=torch.ones(3,3), b=torch.ones(3,2)), 2, False),
    (dict(scale=torch.ones(5)), 0, None), (dict(scale=torch.ones(1,5,1)), 0, None), (dict(bias=torch.ones(3,3)), 0, None), (dict(pos_embed=torch.ones(1,7,4)), 0, None),
    (dict(cls_token=torch.ones(2,4)), 0, None), (dict(relative_table=torch.ones(3,4)), 0, None), (dict(index=torch.ones(3,3).long()), 0, None), (dict(none=None), 0, None),
    (dict(scalar=torch.tensor(1.)), 0, None)])
def test_weights_of_unknown_types(params, n, choosable):
    "Matrices and more that are neither biases nor tables: how many, and can they be named in `layers=`"
    found = counted(nn.Sequential(Own(**params), nn.Linear(2,2), nn.Embedding(3,3), nn.LayerNorm((2,2)), nn.GRU(2,2)))
    assert found==({'0':('Own', n, choosable)} if n else {})

def test_weights_of_attention():
    m = nn.Sequential(nn.MultiheadAttention(4,2), nn.MultiheadAttention(4, 2, kdim=3), Own(a=torch.ones(3,3), b=torch.ones(3,2)))
    assert counted(m)=={'0':('MultiheadAttention', 1, False), '1':('MultiheadAttention', 3, False), '2':('Own', 2, False)}
    a,b = unknown_weights(m)['2'][1]
    assert a is m[2].a and b is m[2].b # the weights themselves, for who marks them
