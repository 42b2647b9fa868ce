"""`python -m fastinit.article`: as `fastinit-article`"""
import sys
from fastinit.article import main, prog

if __name__=='__main__':
    sys.argv[:1] = prog # in what help and errors say
    main()
