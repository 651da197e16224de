"""Forecasters compared fairly: same splits, scaling, origins and time to train.

    command     what `calm-jax benchmark forecast` does
    recordings  which recordings; the rest of the preparation
    methods     names -> methods: baselines, a file of the user's own, CalM, finished runs
    calm        CalM trained within a budget
    worker      one method and seed, fitted and scored in a process of its own
    statistics  spread over seeds, paired bootstrap
    output      the table; figure draws the figure
"""
