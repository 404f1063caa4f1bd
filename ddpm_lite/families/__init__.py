"""Seven families of generative models behind one interface.

`common.py` says what they share. Each other file is one family, and reads like its definition.
"""
