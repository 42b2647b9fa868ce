"""The article's experiments: `from fastinit.article import digits, simple_convnet`."""
from .data import *
from .models import *
from .settings import *
from .runs import *
from .tables import *
from .command import *
