"The statistics are right to 1e-6, against double precision, whatever the values, their number and the processor"
from itertools import product
import numpy as np, pytest, torch
from fastinit.stats import Moments, near_zero
from fastinit.tensors import norm_of,sum_of

SIZES = 2, 3, 63, 64, 255, 256, 511, 512, 513, 2**11-1, 2**11, 2**16+7, 2**17, 2**20, 2**20+1, 2**23+3
#: name → `n` values in float32
VALUES = dict(
    normal = torch.randn,
    equal = lambda n: torch.full((n,), 0.1),
    equal_but_one = lambda n: torch.full((n,), 1.1).index_fill_(0, torch.tensor([n//2]), 7.),
    two_values = lambda n: torch.where(torch.arange(n)%2==0, 0.1, 1.1),
    signs = lambda n: torch.where(torch.arange(n)%3==0, -0.3, 0.7),
    sparse = lambda n: torch.randn(n)*(torch.rand(n)<0.01),
    one = lambda n: torch.zeros(n).index_fill_(0, torch.tensor([n-1]), 1e3), # all but one are zero
    relu = lambda n: torch.randn(n).relu_(),
    black_background = lambda n: torch.where(torch.rand(n)<0.8, -0.4242, torch.rand(n)*3.24 - 0.42),
    blocks = lambda n: torch.cat([torch.full((n//2,), -0.1), torch.full((n-n//2,), 1.3)]), # the halves of a batch differ
    heavy = lambda n: torch.randn(n)**5,
    rising = lambda n: torch.linspace(-1, 3, n),
    bfloat16 = lambda n: torch.randn(n).bfloat16(),
    half_offset = lambda n: (torch.randn(n) + 30).half(),
    tiny = lambda n: torch.randn(n)*1e-25,
    huge = lambda n: torch.randn(n)*1e25)

def check(v, lazy):
    std,mean = map(float, Moments(lazy)(v))
    a = v.double()
    want,m,size = a.std().item(),a.mean().item(),a.abs().mean().item()
    assert abs(std-want) <= 1e-6*want + 1e-9*size, (std/want, v.shape)
    assert abs(mean-m) <= 1e-6*size, (mean-m, v.shape)

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
@pytest.mark.parametrize('kind', VALUES)
def test_moments(kind, lazy):
    torch.manual_seed(0)
    for n in SIZES: check(VALUES[kind](n), lazy)

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
@pytest.mark.parametrize('ratio', [0.3, 0.9, 0.999, 1.001, 1.5, 3., 10., 1e2, 1e3, 1e5])
def test_beside_a_mean(ratio, lazy):
    "Of any size: the rounding of the mean does not show in the std"
    torch.manual_seed(1)
    for n,sign in product((7, 2**9, 2**12, 2**16, 2**20), (-1, 1)): check(torch.randn(n) + sign*ratio, lazy)

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
def test_any_shape_and_layout(lazy):
    torch.manual_seed(2)
    x = torch.randn(6,10,12,14) + torch.arange(10.).view(-1,1,1)
    for o in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:,::3], x[...,1:], x[0,0,0,:1].expand(5,3), x.double(), torch.tensor([3.])):
        if o.numel()>1: check(o, lazy)
    assert tuple(map(float, Moments(lazy)(torch.tensor([3.]))))==(0., 3.)

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
def test_complex(lazy):
    torch.manual_seed(3)
    x = torch.randn(5000, dtype=torch.cfloat)*2 + (3-40j)
    std,mean = Moments(lazy)(x)
    want = x.to(torch.cdouble)
    assert abs(float(std)/want.std().item()-1) < 1e-6 and abs(complex(mean)-want.mean().item()) < 1e-5

@pytest.mark.parametrize('lazy', [False, True], ids=['numbers','tensors'])
def test_constant_and_not_finite(lazy):
    for c,n in product((0., 0.1, -1e5, 1e30), (2, 1000, 2**20+1)):
        std,mean = map(float, Moments(lazy)(torch.full((n,), c)))
        assert std<=1e-7*abs(c) and abs(mean-c)<=1e-6*abs(c)
    for bad in (float('nan'), float('inf')):
        x = torch.randn(3000)
        x[17] = bad
        assert not any(np.isfinite(float(v)) for v in Moments(lazy)(x))

@pytest.mark.parametrize('n', [3, 511, 2**20, 2**23+3])
def test_sums(n):
    "Of values that all round one way"
    for c in (0.1, 0.3, 0.7, 1.1):
        v = torch.full((n,), c)
        assert abs(sum_of(v).item()/v.double().sum().item()-1) < 5e-7 and abs(norm_of(v).item()/v.double().norm().item()-1) < 5e-7

def test_reduced_matmul_precision():
    "A user's leave to multiply matrices in less than float32 does not reach the statistics"
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    try:
        for kind in ('two_values','normal','relu'): check(VALUES[kind](2**20), False)
    finally: torch.set_float32_matmul_precision(was)

@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.half, torch.bfloat16, torch.complex64])
def test_share_near_zero(dtype):
    "Of values of 0.05 or less, negative ones too; of complex ones by their absolute value; a number"
    v = torch.tensor([-3., 0., 0.04, 0.06, 0.5, 1.]).to(dtype)
    share = near_zero(v)
    assert isinstance(share, float) and share==pytest.approx((2 if dtype.is_complex else 3)/6)
    assert near_zero(torch.full((3,), 0.05))==1. and near_zero(torch.zeros(2,3))==1. and near_zero(torch.ones(2))==0.
    assert near_zero(torch.tensor([3j, 0.01j, 0.04]))==pytest.approx(2/3)
