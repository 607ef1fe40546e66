FIGURES = {}
from pathlib import Path
import lightning.pytorch as pl
class PredictionWriter(pl.Callback):
    def __init__(self, f): pass
