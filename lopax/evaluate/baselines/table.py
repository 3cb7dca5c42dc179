"""The hand-made optimizers that anything new is measured against, as a table.

Well-kept implementations (optax, optax.contrib) wherever there are any. Each row says
where its settings come from, and how many learning rates it is tuned over: fifteen for
what the published comparison has, seven where one run is dear or the range is known,
one setting for what needs no tuning.
"""

from __future__ import annotations

import optax
from optax import contrib

from lopax.evaluate.baselines.adamw import AdamW, ScheduleFreeAdamW
from lopax.evaluate.baselines.averages import (
    averaged,
    averaged_params,
    schedule_free_params,
)
from lopax.evaluate.baselines.entries import add, form, free
from lopax.evaluate.baselines.muon import Muon, ScheduleFreeMuon
from lopax.evaluate.baselines.schedules import schedule_of, warmup_cosine
from lopax.evaluate.baselines.soap import Soap
from lopax.evaluate.specs import LEARNING_RATES

PUBLISHED = (
    "adam",
    "sgd",
    "sgdm",
    "adamw",
    "rmsprop",
    "fromage",
    "sm3",
    "lars",
    "lamb",
    "adabelief",
    "adafactor",
    "adagrad",
    "yogi",
    "radam",
    "nadamw",
)
"""The fifteen of the published comparison (Moudgil et al., 2025, arXiv 2501.12670)."""

CONTEMPORARY = (
    "muon",
    "normuon",
    "soap",
    "schedule_free_muon",
    "muon_constant",
    "schedule_free_adamw",
    "schedule_free_adamw_algoperf",
    "adamw_cosine",
    "adamw_linear",
    "adamw_ema",
    "lion",
    "ademamix",
    "prodigy",
)
"""What a practitioner would reach for in 2026; all have a learning rate to tune."""

TUNING_FREE = (
    "prodigy_cosine",
    "dadapt_adamw",
    "mechanic_adamw",
    "dog",
    "dowg",
    "momo",
    "momo_adam",
    "cocob",
)
"""What claims to need no tuning: one setting, that of its authors or of optax."""

MUON_RATES = tuple(0.003125 * 2**k for k in range(7))
"""0.003125 to 0.2, each twice the one before."""
MIDDLE_RATES = LEARNING_RATES[6:13]
"""The part of the published grid where Adam's best rates are: 1e-4 to 0.1."""


add("adam", lambda n, lr: optax.adam(lr), "Kingma & Ba, 2015, arXiv 1412.6980")
add("sgd", lambda n, lr: optax.sgd(lr), "no momentum")
add(
    "sgdm",
    lambda n, lr: optax.sgd(lr, momentum=0.9),
    "momentum 0.9",
    momentum=0.9,
)
add(
    "adamw",
    lambda n, lr: optax.adamw(lr),
    "Loshchilov & Hutter, 2019, arXiv 1711.05101; weight decay 1e-4",
)
add("rmsprop", lambda n, lr: optax.rmsprop(lr), "Tieleman & Hinton, 2012")
add(
    "fromage",
    lambda n, lr: optax.fromage(lr),
    "Bernstein et al., 2020, arXiv 2002.03432",
)
add("sm3", lambda n, lr: optax.sm3(lr), "Anil et al., 2019, arXiv 1901.11150")
add("lars", lambda n, lr: optax.lars(lr), "You et al., 2017, arXiv 1708.03888")
add("lamb", lambda n, lr: optax.lamb(lr), "You et al., 2020, arXiv 1904.00962")
add(
    "adabelief",
    lambda n, lr: optax.adabelief(lr),
    "Zhuang et al., 2020, arXiv 2010.07468",
)
add(
    "adafactor",
    lambda n, lr: optax.adafactor(lr),
    "Shazeer & Stern, 2018, arXiv 1804.04235; step relative to the parameter",
)
add("adagrad", lambda n, lr: optax.adagrad(lr), "Duchi et al., 2011")
add("yogi", lambda n, lr: optax.yogi(lr), "Zaheer et al., 2018")
add("radam", lambda n, lr: optax.radam(lr), "Liu et al., 2020, arXiv 1908.03265")
add("nadamw", lambda n, lr: optax.nadamw(lr), "Dozat, 2016; weight decay 1e-4")
add(
    "lion",
    lambda n, lr: optax.lion(lr),
    "Chen et al., 2023, arXiv 2302.06675; weight decay 1e-3",
)
add(
    "muon_constant",
    lambda n, lr: contrib.muon(lr),
    "optax's own settings: a constant rate, matrices orthogonalised (the embedding and "
    "the output layer too), the rest, convolutions included, by Adam at the same rate",
)
add(
    "schedule_free_adamw",
    lambda n, lr: contrib.schedule_free_adamw(
        lr, warmup_steps=max(1, round(0.05 * n)), b1=0.9
    ),
    "Defazio et al., 2024, arXiv 2405.15682; warm-up over 5 % of the run; evaluated "
    "at the averaged parameters",
    eval_params=schedule_free_params,
    warmup=0.05,
)
add(
    "prodigy",
    lambda n, lr: contrib.prodigy(lr),
    "Mishchenko & Defazio, 2024, arXiv 2306.06101; its rate is a multiplier around 1",
    rates=(*(m * 10.0**e for e in range(-5, 2) for m in (1.0, 3.0)), 100.0),
)
add(
    "adamw_cosine",
    lambda n, lr: optax.adamw(warmup_cosine(n, lr)),
    "AdamW, linear warm-up over 5 % of the run, cosine to zero; weight decay 1e-4",
    warmup=0.05,
)
add(
    "ademamix",
    lambda n, lr: contrib.ademamix(lr),
    "Pagliardini et al., 2025, arXiv 2409.03137",
)
form(
    "muon",
    Muon(),
    MUON_RATES,
    "Jordan et al., 2024, as used: flat convolution kernels, Adam for vectors at 0.3 "
    "and for embeddings at 1 times its rate, 2 % warm-up, linear to zero",
)
form(
    "normuon",
    Muon(neurons=0.95),
    MUON_RATES,
    "Li et al., 2025, arXiv 2510.05491, with the decays of its code (0.95, 0.95); "
    "roles and schedule as for muon",
)
form(
    "soap",
    Soap(),
    MIDDLE_RATES,
    "Vyas et al., 2024, arXiv 2409.11321, with the momenta and the frequency of its "
    "code; 2 % warm-up, linear to zero; no basis for sides longer than 512",
)
form(
    "schedule_free_muon",
    ScheduleFreeMuon(),
    MUON_RATES,
    "Defazio et al., 2024, arXiv 2405.15682, around Muon without momentum; 2 % warm-up "
    "and b1 of AlgoPerf's winner; scored at the averaged parameters",
)
form(
    "schedule_free_adamw_algoperf",
    ScheduleFreeAdamW(),
    LEARNING_RATES[7:14],
    "Defazio et al., 2024: warm-up, momenta and weight decay of the submission that "
    "won AlgoPerf's self-tuning ruleset; scored at the averaged parameters",
)
form(
    "adamw_linear",
    AdamW(),
    MIDDLE_RATES,
    "AdamW, 2 % warm-up, linear to zero (Bergsma et al., 2025, arXiv 2502.15938); "
    "weight decay 1e-4",
)
form(
    "adamw_ema",
    AdamW(schedule="constant", average="exponential"),
    MIDDLE_RATES,
    "AdamW at a constant rate with an exponential average of the parameters over a "
    "tenth of the run, read out at the end (arXiv 2604.15297 has it second of 15); "
    "scored at the average",
)
free(
    "prodigy_cosine",
    lambda n: contrib.prodigy(schedule_of(n, 1.0, "cosine")),
    "Mishchenko & Defazio, 2024, arXiv 2306.06101, with the cosine its authors advise",
    schedule="cosine",
)
free(
    "dadapt_adamw",
    lambda n: contrib.dadapt_adamw(schedule_of(n, 1.0, "linear", 0.05)),
    "Defazio & Mishchenko, 2023, arXiv 2301.07733; 5 % warm-up, linear to zero, which "
    "optax advises",
    schedule="linear",
    warmup=0.05,
)
free(
    "mechanic_adamw",
    lambda n: contrib.mechanize(optax.adamw(schedule_of(n, 1.0, "cosine", 0.05))),
    "Cutkosky et al., 2023, arXiv 2306.00144, around AdamW with 5 % warm-up and "
    "cosine, as in optax's example",
    schedule="cosine",
    warmup=0.05,
)
free(
    "dog",
    lambda n: averaged(contrib.dog(), "polynomial", n),
    "Ivgi et al., 2023, arXiv 2302.12022, with the polynomial average its authors "
    "advise; scored at the average",
    averaged_params,
    average="polynomial",
)
free(
    "dowg",
    lambda n: contrib.dowg(),
    "Khaled et al., 2023, arXiv 2305.16284; optax's settings",
)
free(
    "momo",
    lambda n: contrib.momo(),
    "Schaipp et al., 2023, arXiv 2305.07583; optax's settings, rates up to 1",
)
free(
    "momo_adam",
    lambda n: contrib.momo_adam(),
    "Schaipp et al., 2023, arXiv 2305.07583; optax's settings, rates up to 0.01",
)
free(
    "cocob",
    lambda n: contrib.cocob(),
    "Orabona & Tommasi, 2017, arXiv 1705.07795; optax's settings",
)
