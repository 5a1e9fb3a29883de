"""The examples at the end of each command's --help."""

EXAMPLES = {
    "compare": """examples:
  steppe compare                                           the demo: five methods on 300 digits
  steppe compare --methods plain sam sam:rho=0.1 sadt-v1   these methods, one with a setting
  steppe compare --datasets folder:photos --data.size 64 --models torchvision/resnet18
  steppe compare --match gradients                         the same number of gradient evaluations for all methods
  steppe compare --config study.yaml --seeds 0 1 2 3 4     settings from a file, one replaced
  steppe compare --watch.sharpness 1 --watch.weights 2     sharpness in every epoch, weights in every second
  steppe compare --launcher slurm:partition=gpu,gpus_per_node=1   Slurm jobs; ray:gpus=0.5 for a Ray cluster
  steppe compare recipe=rwp-table2 scale=0.02 --methods plain sam --batch 256 --epochs 20
  steppe compare recipe=small-suite --within 3600 --out suite   tune and compare on several tasks, an hour of it

The same command resumes a comparison that was stopped; finished runs are kept.
Exit code: 0 all runs finished, 1 a run failed, 2 bad input, 130 stopped.""",
    "train": """examples:
  steppe train --method sadt-v1 --dataset cifar10:PATH --epochs 30 --batch 256
  steppe train --method sam:rho=0.1+gc --seed 3
  steppe train --method "sam:rho=linear(0,0.1,0.5),start=0.1" --plan
  steppe train recipe=rwp-table1:wrn-16-8-rwp scale=0.02 --method rwp --dataset cifar10:PATH

The same command resumes a run that was stopped.""",
    "reproduce": """examples:
  steppe reproduce --datasets cifar10:PATH --plan          the tables that can run, their order and their time
  steppe reproduce --datasets cifar10:PATH --within 3600   an hour of it; the same command goes on
  steppe reproduce --datasets cifar10:PATH --tables sadt-table1-512:simple-cnn --within 800 --pack runs.zip
  steppe reproduce --datasets cifar10:PATH --tables sadt-table1-512:simple-cnn --from runs.zip

The same command resumes what was stopped; finished runs are kept.
Exit code: 0, 1 a run failed, 2 bad input, 130 stopped.""",
    "report": """examples:
  steppe report out                                        write the tables and the page again
  steppe report --live out                                 serve a page that follows the runs of `steppe compare`
  steppe report --live out --port 8123                     the same at a fixed port""",
    "list": """examples:
  steppe list                                              methods: cost, memory, source, summary
  steppe list models
  steppe list recipes                                      recipes: settings of papers' tables, for --recipe""",
    "show": """examples:
  steppe show sadt-v1                                      equation, paper, cost, differences, settings
  steppe show rwp-table1                                   settings with their sources, published numbers""",
    "bench": """examples:
  steppe bench methods                                     every method's step as a multiple of plain's
  steppe bench methods sam looksam:k=5 saf --model resnet18 --repeats 30
  steppe bench methods sam pytorch_optimizer:SAM           next to another package's optimizer""",
    "diagnose": """examples:
  steppe diagnose out                                      sharpness, landscapes and robustness of all runs
  steppe diagnose out/runs/0123456789ab --seconds 60       one run, on more images
  steppe diagnose out --which best --on train --json
  steppe diagnose out --bounds                             PAC-Bayes bounds too
  steppe diagnose out/runs/A out/runs/B --between way      the loss along paths between two networks

Results are kept, and the same command resumes a diagnosis that was stopped.""",
    "export": """examples:
  steppe export out/runs/0123456789ab flat                 weights and a torch.export program
  steppe export out/runs/0123456789ab flat --weights last --onnx
  steppe export out/runs/0123456789ab flat --output "ema 0.999"   one of the averages of the method averages""",
    "soup": """examples:
  steppe soup out/runs/A out/runs/B out/runs/C             the mean of the runs that improve the validation
  steppe soup out/runs/* --kind uniform --out flat         the mean of all

Runs from one pretrained network can be averaged; those from different initial weights usually cannot.""",
    "tune": """examples:
  steppe tune --method sam                                 SAM's rho on digits, 20 trials
  steppe tune --method rwp --settings gamma alpha=0..1 --within 600 --seeds 2
  steppe tune --method sam+gc --settings rho=0.01..1 --dataset cifar10:PATH --model resnet18 --epochs 30

The same command resumes a search that was stopped; finished runs are kept.""",
    "conformance": """examples:
  steppe conformance                                       all methods, every check
  steppe conformance sam:rho=0.1 my_module:MyMethod        these methods, one of them your own class
  steppe conformance pytorch_optimizer:SAM                 an optimizer of another package
  steppe conformance sam --checks fp16 overflow --device cuda""",
}
