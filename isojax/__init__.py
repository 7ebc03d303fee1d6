"""isojax: when you quantize an LLM, should you rotate its coordinates or align them?"""

__version__ = "0.1.0"
