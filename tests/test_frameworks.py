"The recipes of the page on plain PyTorch with other trainers: what the first step's layers give, seen by plain hooks."
import logging, warnings
import pytest, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from fastinit.all import *

def net(): return nn.Sequential(nn.Linear(12,24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,2))
def loader():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=g)*3 + 1
    return DataLoader(TensorDataset(x, (x[:,0]>1).long()), 16)

@pytest.mark.parametrize('precision', ['32-true','bf16-true','16-true','bf16-mixed','64-true'])
def test_lightning(precision):
    "`bf16-true` converts the model when the module is set up, before `on_train_start`, and the batch in each step"
    L = pytest.importorskip('lightning')
    for n in ('lightning.pytorch','lightning.fabric','lightning_utilities'): logging.getLogger(n).setLevel(logging.ERROR)
    class LSUV(L.Callback):
        def on_train_start(self, trainer, module):
            if trainer.global_step: return # continued from a checkpoint
            xb,_ = next(iter(trainer.train_dataloader))
            self.report = lsuv_(module.model, xb.to(module.device, module.dtype))
            self.hooks = [m.register_forward_hook(lambda m,i,o: stds.append((o.dtype, o.detach().float().std().item()))) for m in module.model if isinstance(m, nn.Linear)]
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model,self.loss_func = net(),nn.CrossEntropyLoss()
        def training_step(self, batch, i): return self.loss_func(self.model(batch[0]), batch[1])
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 1e-3)
    stds,lsuv,module = [],LSUV(),Module()
    kwargs = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        L.Trainer(max_epochs=1, max_steps=3, callbacks=lsuv, precision=precision, **kwargs).fit(module, loader())
    dtype = {'bf16-true':torch.bfloat16, '16-true':torch.half, 'bf16-mixed':torch.bfloat16, '64-true':torch.double}.get(precision, torch.float)
    tol = 1e-3 if dtype in (torch.float,torch.double) else 0.02 # the step rounds to 16 bits
    assert len(stds)==9 and all(d==dtype for d,_ in stds) and all(abs(s-1)<tol for _,s in stds[:3]), stds[:3]
    assert set(lsuv.report.df.status)=={'ok'} and (lsuv.report.df['std']-1).abs().max()<tol
