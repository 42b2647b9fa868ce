"""`from fastinit.all import *`, as fastai does."""
from .layers import *
from .schemes import *
from .stats import *
from .branches import *
from .lsuv import *
from .plot import *
from .callback import *
