"The README for an index page: links and pictures with their whole address. All else is in pyproject.toml and setup.cfg."
import re
from pathlib import Path
from setuptools import setup

repo = 'fastinit/fastinit'
text = Path(__file__).with_name('README.md').read_text(encoding='utf-8')
text = re.sub(r'\]\((?!https?:|#|mailto:)', f'](https://github.com/{repo}/blob/main/', text)
text = re.sub(r'src="(?!https?:)', f'src="https://raw.githubusercontent.com/{repo}/main/', text)
setup(long_description=text, long_description_content_type='text/markdown')
