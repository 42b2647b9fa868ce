"""The experiments behind the article's claims: `from fastinit.article import digits, simple_convnet`."""
import warnings
with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning) # of what fastai imports
    from .data import datasets, digits, fashion_mnist, get_data, image_folder, imagenette
from .models import (Affine, affine_norm, architectures, build_model, init_reports, inits, model_changes, plain_convnet,
                     remove_norm, report_part, simple_convnet)
from .settings import data_sets, experiment_title, opts, read_experiment, read_run, settings_file
from .runs import new_learner, run_cell, run_experiment
from .tables import (accuracy_table, at_best_lr, balanced, best_difference, best_table, difference_table,
                     last_epoch, read_results, summary_table, whole_seeds, within_seeds)
from .command import main, prog

__all__ = ['digits', 'fashion_mnist', 'imagenette', 'image_folder', 'get_data', 'datasets',
           'simple_convnet', 'plain_convnet', 'Affine', 'affine_norm', 'remove_norm', 'architectures',
           'inits', 'model_changes', 'build_model', 'init_reports', 'report_part',
           'opts', 'settings_file', 'read_experiment', 'read_run', 'data_sets', 'experiment_title',
           'new_learner', 'run_cell', 'run_experiment',
           'last_epoch', 'balanced', 'whole_seeds', 'accuracy_table', 'best_table', 'at_best_lr',
           'difference_table', 'read_results', 'best_difference', 'within_seeds', 'summary_table', 'main', 'prog']
