"""What a user needs, by name: `from fastinit.all import *`, as fastai does."""
from .layers import init_layers
from .acts import GeneralReLU, act_gain
from .probe import InitError
from .stats import layer_grads, layer_hists
from .report import init_stats
from .schemes import default_, fans, init_, kaiming_, normal_, orthogonal_, recurrent_, schemes, xavier_
from .branches import residual_branches
from .lsuv import lsuv_, lsuv_residual_
from .looks import scheme_colors
from .metrics import plot_lr_range, plot_metrics
from .plot import plot_depth, plot_grads, plot_hists, plot_init_stats
from .page import InitReport # with its HTML
from .watch import WatchCallback # and Learner.watch_init, InitReport.plot_steps
from .learner import * # Learner.init_report
from .callback import InitCallback, KaimingCallback, LSUVCallback
from .compare import InitComparison # what Learner.compare_inits gives after training

__all__ = ['lsuv_', 'lsuv_residual_', 'kaiming_', 'xavier_', 'orthogonal_', 'normal_', 'default_', 'recurrent_', 'init_', 'schemes',
           'InitCallback', 'KaimingCallback', 'LSUVCallback', 'WatchCallback',
           'init_stats', 'InitReport', 'InitComparison', 'InitError', 'layer_hists', 'layer_grads', 'residual_branches',
           'plot_init_stats', 'plot_hists', 'plot_grads', 'plot_depth', 'plot_metrics', 'plot_lr_range', 'scheme_colors',
           'init_layers', 'act_gain', 'fans', 'GeneralReLU']
