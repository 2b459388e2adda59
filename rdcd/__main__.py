from rdcd.cli import main

raise SystemExit(main())
