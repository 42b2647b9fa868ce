"""`from fastinit.all import *`, as fastai does."""
from .tensors import *
from .layers import *
from .acts import *
from .probe import *
from .pool import *
from .stats import *
from .report import *
from .schemes import *
from .branches import *
from .correction import *
from .at_activation import *
from .lsuv import *
from .plot import *
from .page import *
from .callback import *
