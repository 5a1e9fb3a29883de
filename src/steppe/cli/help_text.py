"""What each command's --help shows at its end."""

from __future__ import annotations

EXAMPLES = {
    "compare": """examples:
  steppe compare                                           the methods of the SADT paper on digits, 3 seeds
  steppe compare --methods plain sam sam:rho=0.1 sadt-v1   choose methods, with settings
  steppe compare --datasets folder:photos --data.size 64 --models torchvision/resnet18
  steppe compare --match gradients                         equal numbers of gradient evaluations
  steppe compare --config study.yaml --seeds 0 1 2 3 4     a file, with one change
  steppe compare --watch.sharpness 1 --watch.weights 2     sharpness per epoch, trajectories
  steppe compare --launcher slurm:partition=gpu,gpus_per_node=1   jobs of Slurm; ray:gpus=0.5 for a Ray cluster
  steppe compare recipe=rwp-table2 scale=0.02 --methods plain sam --batch 256 --epochs 20

A comparison that was stopped goes on when the same command is given again; finished runs are kept.""",
    "train": """examples:
  steppe train --method sadt-v1 --dataset cifar10:PATH --epochs 30 --batch 256
  steppe train --method sam:rho=0.1+gc --seed 3
  steppe train --method "sam:rho=linear(0,0.1,0.5),start=0.1" --plan
  steppe train recipe=rwp-table1:wrn-16-8-rwp scale=0.02 --method rwp --dataset cifar10:PATH

A run that was stopped goes on when the same command is given again.""",
    "report": """examples:
  steppe report out                                        write the tables and the page anew
  steppe report --live out                                 a page that follows the runs of `steppe compare`
  steppe report --live out --port 8123                     at an address that stays""",
    "list": """examples:
  steppe list                                              methods: cost, memory, source, a sentence
  steppe list models
  steppe list recipes                                      tables of papers whose settings --recipe takes""",
    "show": """examples:
  steppe show sadt-v1                                      equation, paper, cost, differences, values to try
  steppe show rwp-table1                                   settings with their sources, published numbers""",
    "bench": """examples:
  steppe bench methods                                     every method's step as a multiple of plain's
  steppe bench methods sam looksam:k=5 saf --model resnet18 --repeats 30
  steppe bench methods sam pytorch_optimizer:SAM           next to another package's optimizer""",
    "diagnose": """examples:
  steppe diagnose out                                      sharpness, landscapes, robustness of a comparison
  steppe diagnose out/runs/0123456789ab --seconds 60       one run, with more images
  steppe diagnose out --which best --on train --json
  steppe diagnose out --bounds                             PAC-Bayes bounds too
  steppe diagnose out/runs/A out/runs/B --between way      the loss between two networks

What has been measured is kept; a diagnosis that was stopped goes on when the same command is given again.""",
    "export": """examples:
  steppe export out/runs/0123456789ab flat                 weights and a torch.export program of what is deployed
  steppe export out/runs/0123456789ab flat --weights last --onnx""",
    "tune": """examples:
  steppe tune --method sam                                 rho, 20 trials, on the validation images of digits
  steppe tune --method rwp --settings gamma alpha=0..1 --within 600 --seeds 2
  steppe tune --method sam+gc --settings rho=0.01..1 --dataset cifar10:PATH --model resnet18 --epochs 30

A search that was stopped goes on when the same command is given again; finished runs are kept.""",
    "conformance": """examples:
  steppe conformance                                       all methods, every check
  steppe conformance sam:rho=0.1 my_module:MyMethod        chosen ones, your own class among them
  steppe conformance pytorch_optimizer:SAM                 a third party's optimizer
  steppe conformance sam --checks fp16 overflow --device cuda""",
}
